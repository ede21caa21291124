"""Checks of a config's values, before anything is built. An error names the key in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from data_pipeline.audio.contract import MEL_SHAPE, SAMPLE_RATE
from data_pipeline.console.cli import UserError
from data_pipeline.params.counter_rng import MAX_SEED, TEST_SEED, VALIDATION_SEED
from synthjax.methods.regression import LOSSES
from synthjax.methods.solvers import FIXED_STEPS, SOLVERS
from synthjax.models.build import FIELDS, KINDS

SECTIONS = ("data", "model", "optim", "train", "validation", "sampling", "checkpoint")
POSITIVE = (
    "data.batch_size",
    "train.steps",
    "train.log_every",
    "train.accumulate",
    "checkpoint.every",
    "checkpoint.keep",
    "validation.rows",
    "validation.sampled_rows",
    "validation.solver_steps",
    "sampling.steps",
    "sampling.batch_size",
)
NATURAL = ("seed", "data.workers", "train.eval_every", "optim.lr", "optim.weight_decay")
# Of configs whose data are sounds of a synthesizer.
NATURAL_OF_SOUNDS = ("data.min_std_db", "validation.probe_sounds")
CHOICES = {
    "attention": ("auto", "xla"),
    "compute_dtype": ("float32", "bfloat16"),
    "data.source": ("shards", "render", "k_osc"),
    "model.kind": tuple(KINDS),
    "optim.name": ("adam", "adamw"),
    "train.remat": ("elementwise", "layers", "none"),
    "validation.solver": tuple(FIXED_STEPS),
    "sampling.solver": SOLVERS,
}
CHOICES_OF_SHARDS = {"data.cache": ("none", "host", "device")}
CHOICES_OF_FLOW = {"model.field.kind": tuple(FIELDS), "model.field.projection": ("param2tok", "oscillators")}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises UserError that names the first value that is wrong or missing."""
    if not set(SECTIONS) & set(config):
        raise UserError(f"this is no training config, it has no {', '.join(SECTIONS)}: see configs/important.py")
    try:
        _check(config)
    except (AttributeError, KeyError, TypeError) as error:  # Such as in a config.json that was edited by hand.
        raise UserError(f"the config lacks a value or has one of the wrong type: {error}") from error


def _check(config: ml_collections.ConfigDict) -> None:
    _check_choices(config, CHOICES)
    sounds = config.data.source != "k_osc"
    if config.data.source == "shards":
        _check_choices(config, CHOICES_OF_SHARDS)
    elif config.data.source == "render":
        _check_rendering(config)
    else:
        _check_k_osc(config)
    for key in (*POSITIVE, *_sizes(config.model, "model")):
        _require(value_of(config, key) >= 1, key, config, "must be at least 1")
    for key in (*NATURAL, *(NATURAL_OF_SOUNDS if sounds else ())):
        _require(value_of(config, key) >= 0, key, config, "must not be negative")
    steps, warmup = config.train.steps, config.optim.warmup_steps
    _require(0 <= warmup < steps, "optim.warmup_steps", config, f"must be below train.steps={steps}")
    parse_window(config.profile)
    _check_sampling(config)
    if config.model.kind == "flow":
        _check_flow(config)
    elif config.model.kind == "regression":
        _check_regression(config)
    else:
        _require(sounds, "model.kind", config, "needs spectrograms: use data.source=shards or render")
    if "encoder" in config.model:
        _check_encoder(config)


def _check_choices(config: ml_collections.ConfigDict, choices: Mapping[str, tuple[str, ...]]) -> None:
    for key, values in choices.items():
        _require(value_of(config, key) in values, key, config, f"must be {' or '.join(values)}")


def _check_rendering(config: ml_collections.ConfigDict) -> None:
    data = config.data
    _require(data.cache == "none", "data.cache", config, "keeps rows of shards: leave it out with data.source=render")
    reserved = (VALIDATION_SEED, TEST_SEED)
    fits = 0 <= data.seed <= MAX_SEED and data.seed not in reserved
    _require(fits, "data.seed", config, f"must not be negative, nor {reserved}, the seeds of validation and tests")
    fits = 1 <= data.reuse <= data.batch_size
    _require(fits, "data.reuse", config, "must be 1 to data.batch_size")
    for kind, probability in data.corruption.items():
        _require(0 <= probability <= 1, f"data.corruption.{kind}", config, "must be a probability in [0, 1]")


def _check_k_osc(config: ml_collections.ConfigDict) -> None:
    _require(config.k_osc.oscillators >= 1, "k_osc.oscillators", config, "must be at least 1")
    low, high = config.k_osc.frequency_range
    fits = 0 <= low < high <= SAMPLE_RATE / 2
    _require(fits, "k_osc.frequency_range", config, f"must be (low, high) within 0 to {SAMPLE_RATE / 2:g} Hz")


def _check_sampling(config: ml_collections.ConfigDict) -> None:
    interval = config.sampling.guidance_interval
    fits = len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1
    _require(fits, "sampling.guidance_interval", config, "must be (begin, end) with 0 <= begin < end <= 1")
    _require(config.sampling.tolerance > 0, "sampling.tolerance", config, "must be above 0")


def _check_flow(config: ml_collections.ConfigDict) -> None:
    _check_choices(config, CHOICES_OF_FLOW)
    rate = config.flow.guidance_dropout
    _require(0 <= rate < 1, "flow.guidance_dropout", config, "must be a rate in [0, 1)")
    times = config.validation.times
    _require(times and all(0 <= t <= 1 for t in times), "validation.times", config, "must be times in [0, 1]")
    field = config.model.field
    fits = field.time_features == 1 or field.time_features % 2 == 0
    _require(fits, "model.field.time_features", config, "must be 1 or even: cos and sin of each angle")
    if field.kind == "transformer":
        _check_heads(config, "field")
    if field.projection == "oscillators" and field.kind == "transformer":
        fits = config.data.source == "k_osc" and field.tokens == config.k_osc.oscillators
        _require(fits, "model.field.projection", config, "is for data.source=k_osc, with a token for each oscillator")


def _check_regression(config: ml_collections.ConfigDict) -> None:
    _check_choices(config, {"model.loss": tuple(LOSSES)})
    fits = config.model.loss == "mse" or config.data.source == "k_osc"
    _require(fits, "model.loss", config, "is for the oscillators of data.source=k_osc: use mse")


def _check_encoder(config: ml_collections.ConfigDict) -> None:
    encoder = config.model.encoder
    if encoder.kind == "spectral":
        _check_choices(config, {"model.encoder.norm": ("batch", "layer")})
    if encoder.kind != "ast":
        return
    _check_heads(config, "encoder")
    for key in ("model.encoder.patch", "model.encoder.stride"):
        size = value_of(config, key)
        _require(len(size) == 2 and min(size) >= 1, key, config, "must be (mels, frames)")
    _, mels, frames = MEL_SHAPE
    high, wide = encoder.patch
    fits = high <= mels and wide <= frames
    _require(fits, "model.encoder.patch", config, f"must fit into {mels} mels and {frames} frames")


def _check_heads(config: ml_collections.ConfigDict, part: str) -> None:
    dim, heads = config.model[part].dim, config.model[part].heads
    _require(dim % heads == 0, f"model.{part}.dim", config, f"is not a multiple of model.{part}.heads={heads}")


def _sizes(section: ml_collections.ConfigDict, name: str) -> list[str]:
    """The keys of all whole numbers of a section, all of which are sizes."""
    keys: list[str] = []
    for key, value in section.items():
        if isinstance(value, ml_collections.ConfigDict):
            keys += _sizes(value, f"{name}.{key}")
        elif isinstance(value, int) and not isinstance(value, bool):
            keys.append(f"{name}.{key}")
    return keys


def parse_window(text: str) -> range:
    """Steps 100 to 109 for ``100:110``; none for an empty text. Raises UserError for any other text."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if text and (match is None or int(match[1]) >= int(match[2])):
        raise UserError(f"profile={text!r} must be FIRST:END steps, such as 100:110")
    return range(int(match[1]), int(match[2])) if match else range(0)


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def _require(fits: bool, key: str, config: ml_collections.ConfigDict, reason: str) -> None:
    if not fits:
        raise UserError(f"{key}={value_of(config, key)} {reason}")
