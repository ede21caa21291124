"""The configs of the paper's baselines and of its synthetic task."""

from __future__ import annotations

import importlib
import json
import re

import jax
import ml_collections
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from synthjax.methods.task import KOscTask, SpectrogramTask
from synthjax.models.build import build_model
from synthjax.runs.check_config import check_config
from synthjax.training.trainer import Trainer

SHAPE = (2, 128, 401)
# Millions of parameters, ours: correct padding makes another number of patches than the paper's code has.
SIZES = {
    ("flow_simple", ""): 39.9,
    ("flow_full", ""): 40.2,
    ("flow_mlp", "full"): 41.7,
    ("regression", "full"): 45.4,
    ("flow_vae", ""): 39.5,
    ("flow_vae", "full"): 44.3,
}
MODELS = ("param2tok", "equivariant", "mlp", "mse", "sorted_mse", "chamfer")


def load(name: str, arg: str = "") -> ml_collections.ConfigDict:
    return importlib.import_module(f"synthjax.configs.{name}").get_config(arg)


@pytest.mark.parametrize(("name", "arg"), SIZES)
def test_baselines_have_the_papers_size_and_recipe(name: str, arg: str) -> None:
    config = load(name, arg)
    full = arg == "full" or name == "flow_full"
    assert config.data.spec == ("surge_xt" if full else "surge_simple")
    assert (config.train.steps, config.data.batch_size, config.sampling.steps) == (1_000_000, 128, 100)
    trainer = Trainer.create(config, SpectrogramTask(load_spec(config.data.spec), SHAPE, 1.0))
    assert round(trainer.parameter_count() / 1e6, 1) == SIZES[name, arg]


def test_swapped_padding_gives_the_papers_sizes_exactly() -> None:
    """40.2, 41.6 and 45.3 M: see also test_regression."""
    for name, arg, millions in (("flow_full", "", 40.2), ("flow_mlp", "full", 41.6), ("regression", "full", 45.3)):
        config = load(name, arg)
        config.model.encoder.swapped_padding = True
        trainer = Trainer.create(config, SpectrogramTask(load_spec(config.data.spec), SHAPE, 1.0))
        assert round(trainer.parameter_count() / 1e6, 1) == millions


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_every_model_of_the_synthetic_task_builds(model: str, symmetry: str) -> None:
    config = load("k_osc", f"model={model},k=8,{symmetry},range=paper,norm=layer")
    assert config.k_osc.symmetric == (symmetry == "symmetric")
    task = KOscTask.from_config(config)
    assert task.settings.frequency_range == (0.0, 22_050.0)
    trainer = Trainer.create(config, task)
    assert trainer.task.width == 24
    if config.model.kind == "flow" and config.model.field.kind == "transformer":
        assert config.model.field.tokens == 8


def test_the_recipe_of_the_synthetic_task_is_the_papers() -> None:
    config = load("k_osc")
    assert (config.data.batch_size, config.train.steps, config.optim.clip_norm) == (1_024, 400_000, 1.0)
    assert config.optim.lr == config.optim.final_lr == 1e-4
    assert config.k_osc.frequency_range == (20.0, 4_000.0)
    assert json.loads(json.dumps(config.to_dict()))["model"]["field"]["tokens"] == 4


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("model=gan", "unknown model 'gan': choose one of param2tok"),
        ("model=mse,model=mlp", "unknown model"),
        ("k=5", "unknown variant 'k=5'"),
        ("symmetric,asymmetric", "both set k_osc.symmetric"),
        ("tokens_64", "unknown variant"),
    ],
)
def test_arguments_that_mean_nothing_are_told(arg: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load("k_osc", arg)


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("k_osc", "k_osc.oscillators", 0, "k_osc.oscillators=0 must be at least 1"),
        ("k_osc", "k_osc.frequency_range", (100.0, 50.0), "must be (low, high) within 0 to 22050 Hz"),
        ("k_osc", "k_osc.frequency_range", (0.0, 30_000.0), "must be (low, high)"),
        ("k_osc", "model.encoder.norm", "group", "model.encoder.norm=group must be batch or layer"),
        ("k_osc", "model.field.projection", "tokens", "must be param2tok or oscillators"),
        ("k_osc", "model.kind", "flow_vae", "model.kind=flow_vae needs spectrograms"),
        ("k_osc", "data.source", "files", "data.source=files must be shards or render or k_osc"),
        ("regression", "model.loss", "chamfer", "model.loss=chamfer is for the oscillators"),
        ("regression", "model.loss", "mae", "model.loss=mae must be mse or sorted_mse or chamfer"),
        ("regression", "model.encoder.heads", 5, "is not a multiple of model.encoder.heads=5"),
        ("regression", "model.kind", "gan", "model.kind=gan must be flow or regression or flow_vae"),
        ("flow_vae", "model.beta.steps", 0, "model.beta.steps=0 must be at least 1"),
        ("flow_vae", "model.hidden", 0, "model.hidden=0 must be at least 1"),
        ("flow_mlp", "model.field.time_features", 7, "must be 1 or even"),
        ("flow_simple", "model.field.projection", "oscillators", "is for data.source=k_osc"),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, key: str, value: object, said: str) -> None:
    config = load(name)
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(said)):
        check_config(config)


def test_an_encoder_for_other_inputs_is_refused() -> None:
    config = load("k_osc")
    task = KOscTask.from_config(config)
    config.model.encoder.kind = "cnn"
    with pytest.raises(UserError, match=r"encoder.kind=cnn cannot read .* of shape \(1024,\): use spectral"):
        Trainer.create(config, task)
    config.model.encoder.kind = "wav2vec"
    with pytest.raises(UserError, match=r"unknown model.encoder.kind 'wav2vec'"):
        Trainer.create(config, task)


def test_a_regression_takes_no_residual_cnn() -> None:
    config = load("regression")
    config.model.encoder.kind = "cnn"
    with pytest.raises(UserError, match=r"takes model.encoder.kind=ast or spectral"):
        build_model(config.model, width=4, input_shape=SHAPE, dtype="float32", rngs=None)  # type: ignore[arg-type]


def test_steps_lower_with_all_placements_pinned() -> None:
    """The VAE, whose statistics, noise and schedule no other model has."""
    config = load("flow_vae")
    trainer = Trainer.create(config, SpectrogramTask(load_spec("surge_simple"), SHAPE, 1.0))
    state = jax.eval_shape(trainer.init)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.params)}
    assert any("'mean'" in name for name in names)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
