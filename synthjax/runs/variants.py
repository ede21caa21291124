"""Variants of the experiments: named changes of a config, given after a colon.

``configs/flow_20k.py:lr_high,tokens_64`` combines two variants. ``VARIANTS`` lists those of the flows with transformer
field; each changes only the values beside its name. Other experiments list theirs in their own docstring.
"""

from typing import Any

import ml_collections

from data_pipeline.console.cli import UserError

Overrides = dict[str, Any]  # Dotted config key -> value.

# Sizes that encoder and field both take: (width, heads, layers). The base model has (512, 8, 8).
_SIZES = {"model_enlarged": (768, 12, 12), "model_reduced_75": (384, 6, 6), "model_reduced_50": (256, 4, 4)}

VARIANTS: dict[str, Overrides] = {
    "batch_size_low": {"data.batch_size": 64},
    "batch_size_high": {"data.batch_size": 256},
    "lr_low": {"optim.lr": 5e-5},
    "lr_high": {"optim.lr": 5e-4},
    "weight_decay": {"optim.weight_decay": 0.01},
    "projection_penalty_low": {"flow.projection_penalty": 0.001},
    "ffn_small": {"model.field.ff_dim": 256},
    "tokens_64": {"model.field.tokens": 64},
    "tokens_256": {"model.field.tokens": 256},
}
VARIANTS |= {
    name: {
        f"model.{network}.{key}": value
        for network in ("encoder", "field")
        for key, value in zip(("dim", "heads", "layers"), sizes, strict=True)
    }
    for name, sizes in _SIZES.items()
}


# Variants of the baselines: Surge Full instead of Surge Simple.
FULL: dict[str, Overrides] = {"full": {"data.spec": "surge_xt"}}


def apply_variants(
    config: ml_collections.ConfigDict, arg: str, table: dict[str, Overrides] = VARIANTS
) -> ml_collections.ConfigDict:
    """Applies a comma-separated list of variants to ``config`` and returns it.

    Args:
      table: the variants that the list may name.

    Raises:
      UserError: for an unknown variant, or two that set the same value.
    """
    changed: dict[str, str] = {}
    for name in filter(None, arg.split(",")):
        if name not in table:
            raise UserError(f"unknown variant {name!r}: choose from {', '.join(sorted(table))}")
        for key, value in table[name].items():
            if key in changed:
                raise UserError(f"variants {changed[key]} and {name} both set {key}: choose one")
            changed[key] = name
            config.update_from_flattened_dict({key: value})
    return config
