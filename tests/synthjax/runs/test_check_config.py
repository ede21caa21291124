"""Errors about wrong config values name the key."""

from __future__ import annotations

import math

import ml_collections
import pytest

from data_pipeline.console.cli import UserError
from synthjax.runs.check_config import check_config
from tests import render_subtractive


def test_the_bundled_values_pass(tiny_config: ml_collections.ConfigDict) -> None:
    check_config(tiny_config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.batch_size", 0, "data.batch_size=0 must be at least 1"),
        ("seed", -1, "seed=-1 must not be negative"),
        ("flow.guidance_dropout", 2.0, "flow.guidance_dropout=2.0 must be a rate"),
        ("data.workers", -1, "data.workers=-1 must not be negative"),
        ("train.eval_every", -5, "train.eval_every=-5 must not be negative"),
        ("validation.probe_sounds", -1, "validation.probe_sounds=-1 must not be negative"),
        ("validation.sampled_rows", 0, "validation.sampled_rows=0 must be at least 1"),
        ("validation.times", (), "validation.times=() must be times"),
        ("validation.times", (0.5, 1.5), "must be times in [0, 1]"),
        ("sampling.solver", "midpoint", "sampling.solver=midpoint must be euler or heun or rk4 or dopri5"),
        ("validation.solver", "dopri5", "validation.solver=dopri5 must be euler or heun or rk4"),
        ("sampling.tolerance", 0.0, "sampling.tolerance=0.0 must be above 0"),
        ("sampling.tolerance", -1e-4, "sampling.tolerance=-0.0001 must be above 0"),
        ("sampling.tolerance", math.nan, "sampling.tolerance=nan must be above 0"),
        ("sampling.tolerance", "small", "the config lacks a value or has one of the wrong type"),
        ("sampling.guidance_interval", (0.5, 0.5), "=(0.5, 0.5) must be (begin, end) with 0 <= begin < end <= 1"),
        ("sampling.guidance_interval", (0.6, 0.4), "=(0.6, 0.4) must be (begin, end) with 0 <= begin < end <= 1"),
        ("sampling.guidance_interval", (-0.1, 0.4), "sampling.guidance_interval=(-0.1, 0.4) must be (begin, end)"),
        ("sampling.guidance_interval", (0.0, 1.1), "sampling.guidance_interval=(0.0, 1.1) must be (begin, end)"),
        ("sampling.guidance_interval", (0.4,), "sampling.guidance_interval=(0.4,) must be (begin, end)"),
        ("sampling.guidance_interval", 0.4, "the config lacks a value or has one of the wrong type"),
        ("optim.name", "sgd", "optim.name=sgd must be adam or adamw"),
        ("optim.warmup_steps", 12, "optim.warmup_steps=12 must be below train.steps=12"),
        ("optim.warmup_steps", -1, "optim.warmup_steps=-1 must be below train.steps=12"),
        ("attention", "cudnn", "attention=cudnn must be auto or xla"),
        ("compute_dtype", "int8", "compute_dtype=int8 must be float32 or bfloat16"),
        ("model.encoder.layers", 0, "model.encoder.layers=0 must be at least 1"),
        ("model.field.heads", 0, "model.field.heads=0 must be at least 1"),
        ("model.encoder.heads", 3, "model.encoder.dim=16 is not a multiple of model.encoder.heads=3"),
        ("model.field.heads", 5, "model.field.dim=16 is not a multiple of model.field.heads=5"),
        ("model.field.time_features", 7, "model.field.time_features=7 must be 1 or even"),
        ("model.encoder.patch", (129, 16), "model.encoder.patch=(129, 16) must fit into 128 mels and 401 frames"),
        ("model.encoder.patch", (128, 402), "model.encoder.patch=(128, 402) must fit into 128 mels and 401 frames"),
        ("model.encoder.stride", (16,), "model.encoder.stride=(16,) must be (mels, frames)"),
        ("model.encoder.stride", (0, 16), "model.encoder.stride=(0, 16) must be (mels, frames)"),
    ],
)
def test_a_value_that_cannot_be_is_named(
    tiny_config: ml_collections.ConfigDict, key: str, value: object, said: str
) -> None:
    with tiny_config.ignore_type():
        tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as refusal:
        check_config(tiny_config)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sampling.solver", "dopri5"), ("sampling.guidance_interval", (0.2, 0.8)), ("sampling.guidance_interval", [0, 1])],
)
def test_how_rows_are_drawn_can_be_chosen(tiny_config: ml_collections.ConfigDict, key: str, value: object) -> None:
    with tiny_config.ignore_type():
        tiny_config.update_from_flattened_dict({key: value})
    check_config(tiny_config)


def test_heads_of_the_transformer_do_not_concern_the_cnn(tiny_config: ml_collections.ConfigDict) -> None:
    tiny_config.model.encoder.update({"kind": "cnn", "heads": 3})
    check_config(tiny_config)


@pytest.mark.parametrize("broken", [{"model": 3}, {"train": {}}])
def test_a_config_with_values_missing_is_one_error(broken: dict[str, object]) -> None:
    with pytest.raises(UserError, match="the config lacks a value"):
        check_config(ml_collections.ConfigDict(broken))


@pytest.mark.parametrize("other", [render_subtractive.get_config(), ml_collections.ConfigDict()])
def test_another_kind_of_config_is_refused(other: ml_collections.ConfigDict) -> None:
    with pytest.raises(UserError, match=r"no training config, it has no data, model, .*: see configs/important"):
        check_config(other)
