"""Small runs of the k-osc task."""

from __future__ import annotations

from typing import Any

import ml_collections

# What a CPU runs in a moment.
TINY: dict[str, Any] = {
    "data.batch_size": 16,
    "data.workers": 0,
    "model.encoder.dim": 8,
    "model.encoder.channels": 4,
    "model.encoder.stages": 1,
    "train.steps": 6,
    "train.log_every": 1,
    "train.eval_every": 3,
    "checkpoint.every": 3,
    "validation.rows": 20,
    "validation.sampled_rows": 20,
    "validation.solver_steps": 1,
    "sampling.steps": 2,
}
TINY_FIELD: dict[str, Any] = {"model.field.dim": 8, "model.field.layers": 1}


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with everything shrunk."""
    config.update_from_flattened_dict(TINY)
    if config.model.kind == "flow":
        config.update_from_flattened_dict(TINY_FIELD)
        if config.model.field.kind == "transformer":
            config.model.field.update({"heads": 2, "ff_dim": 8})
    return config
