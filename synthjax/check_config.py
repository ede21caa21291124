"""What a config's values must be, told in one line before anything is built."""

from __future__ import annotations

from typing import Any

import ml_collections

from data_pipeline.cli import UserError
from data_pipeline.shards import MEL_SPEC, row_shapes
from synthjax.sampling import SOLVERS

POSITIVE = (
    "data.batch_size",
    "train.steps",
    "train.log_every",
    "checkpoint.every",
    "checkpoint.keep",
    "validation.rows",
    "validation.sampled_rows",
    "validation.solver_steps",
    "sampling.steps",
    "sampling.batch_size",
)
NATURAL = (
    "seed",
    "data.workers",
    "data.min_std_db",
    "train.eval_every",
    "validation.probe_sounds",
    "optim.lr",
    "optim.weight_decay",
    "ranking.mss",
    "ranking.wmfcc",
)
CHOICES: dict[str, tuple[str, ...]] = {
    "compute_dtype": ("float32", "bfloat16"),
    "validation.solver": tuple(SOLVERS),
    "sampling.solver": tuple(SOLVERS),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises UserError naming the first value that cannot be, or that is missing."""
    try:
        _check(config)
    except (AttributeError, KeyError, TypeError) as error:  # A config.json that somebody wrote by hand.
        raise UserError(f"the config lacks a value or has one of the wrong kind: {error}") from error


def _check(config: ml_collections.ConfigDict) -> None:
    sizes = [f"model.{part}.{key}" for part in ("encoder", "field") for key in _sizes(config.model[part])]
    for key in (*POSITIVE, *sizes):
        _require(_get(config, key) >= 1, key, config, "must be at least 1")
    for key in NATURAL:
        _require(_get(config, key) >= 0, key, config, "must not be negative")
    for key, choices in CHOICES.items():
        _require(_get(config, key) in choices, key, config, f"must be {' or '.join(choices)}")
    rate = config.flow.guidance_dropout
    _require(0 <= rate < 1, "flow.guidance_dropout", config, "must be a rate in [0, 1)")
    times = config.validation.times
    _require(times and all(0 <= t <= 1 for t in times), "validation.times", config, "must be times in [0, 1]")
    _check_model(config)


def _check_model(config: ml_collections.ConfigDict) -> None:
    parts = ("encoder", "field") if config.model.encoder.kind == "ast" else ("field",)
    for part in parts:
        dim, heads = config.model[part].dim, config.model[part].heads
        _require(dim % heads == 0, f"model.{part}.dim", config, f"is not a multiple of model.{part}.heads={heads}")
    features = config.model.field.time_features
    fits = features == 1 or features % 2 == 0
    _require(fits, "model.field.time_features", config, "must be 1 or even: cos and sin of each angle")
    for key in ("model.encoder.patch", "model.encoder.stride"):
        _require(len(_get(config, key)) == 2 and min(_get(config, key)) >= 1, key, config, "must be (mels, frames)")
    _, mels, frames = row_shapes(width=0)[MEL_SPEC]
    high, wide = config.model.encoder.patch
    fits = high <= mels and wide <= frames
    _require(fits, "model.encoder.patch", config, f"must fit into {mels} mels and {frames} frames")


def _sizes(section: ml_collections.ConfigDict) -> list[str]:
    return [key for key, value in section.items() if isinstance(value, int) and not isinstance(value, bool)]


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def _require(fits: bool, key: str, config: ml_collections.ConfigDict, reason: str) -> None:
    if not fits:
        raise UserError(f"{key}={_get(config, key)} {reason}")
