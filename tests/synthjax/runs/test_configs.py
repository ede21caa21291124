"""Every config and variant builds and lowers, with the number of parameters that it should have."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from flax import nnx
from jax.sharding import AxisType

from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.cluster import sharding
from synthjax.configs.flow_100k import LENGTHS
from synthjax.methods.task import SpectrogramTask
from synthjax.runs.variants import VARIANTS
from synthjax.training.trainer import Trainer, abstract_state, jit_train_step

SHAPE = (2, 128, 401)
EXPERIMENTS = {"flow_20k": 40_000, "flow_50k": 80_000, "flow_100k": 50_000, "important": 50_000}
SIZES = {"model_enlarged": (768, 12), "model_reduced_75": (384, 6), "model_reduced_50": (256, 4)}


def parameters_by_hand(variant: str, columns: int = 92) -> int:
    """Counts the layers that MODELS.md lists, with the sizes that DESIGN gives the variant."""
    d, layers = SIZES.get(variant, (512, 8))
    ff = 256 if variant == "ffn_small" else 512
    tokens = {"tokens_64": 64, "tokens_256": 256}.get(variant, 128)
    attention, norms = 4 * d * d + 4 * d, 4 * d
    encoder_block = norms + attention + 2 * (d * d + d)
    patches, queries_and_positions = 2 * 16 * 16 * d + d, (layers + layers + 13 * 40) * d
    encoder = patches + queries_and_positions + layers * encoder_block + d * d + d
    param2tok = tokens * columns + 2 * columns * d + 2 * (d * d + d)
    conditioning = (d + 256) * d + d + d * d + d
    field_block = norms + attention + 2 * d * ff + ff + d + 6 * d * d + 6 * d
    return encoder + param2tok + d + conditioning + layers * field_block


def load(name: str, arg: str = "") -> ml_collections.ConfigDict:
    return importlib.import_module(f"synthjax.configs.{name}").get_config(arg)


def build(config: ml_collections.ConfigDict) -> Trainer:
    return Trainer.create(config, SpectrogramTask(load_spec(config.data.spec), SHAPE, config.data.min_std_db))


def lower(config: ml_collections.ConfigDict) -> tuple[Trainer, jax.stages.Lowered]:
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    trainer, rows = build(config), config.data.batch_size
    width = trainer.task.width
    shardings = trainer.state_shardings(mesh)
    batch = {
        "mel_spec": jax.ShapeDtypeStruct((rows, *SHAPE), jnp.float16),
        "x1": jax.ShapeDtypeStruct((rows, width), jnp.float32),
        "x0": jax.ShapeDtypeStruct((rows, width), jnp.float32),
    }
    batch = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding.batch_sharding(mesh)) for k, v in batch.items()
    }
    stats = MelStats(*[jax.ShapeDtypeStruct(SHAPE, jnp.float32)] * 2)
    return trainer, jit_train_step(trainer, mesh, shardings).lower(abstract_state(trainer, shardings), batch, stats)


@pytest.mark.parametrize(
    ("name", "variant"), [*((name, "") for name in EXPERIMENTS), *(("flow_20k", v) for v in VARIANTS)]
)
def test_every_config_and_variant_builds(name: str, variant: str) -> None:
    config = load(name, variant)
    trainer = build(config)
    assert trainer.parameter_count() == parameters_by_hand(variant)


@pytest.mark.parametrize(
    "variant",
    ["", *(pytest.param(name, marks=pytest.mark.slow) for name in ("model_enlarged", "tokens_64", "batch_size_low"))],
)
def test_a_step_of_every_size_lowers(variant: str) -> None:
    config = load("flow_20k", variant)
    assert f"tensor<{config.data.batch_size}x92xf32>" in lower(config)[1].as_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_steps_are_those_of_the_reference(name: str) -> None:
    assert load(name).train.steps == EXPERIMENTS[name]


@pytest.mark.parametrize(("length", "steps"), [("steps=500k", 500_000), ("steps=1200k", 1_200_000)])
def test_long_runs(length: str, steps: int) -> None:
    assert length in LENGTHS
    config = load("flow_100k", f"{length},lr_low")
    assert (config.train.steps, config.optim.lr) == (steps, 5e-5)


def test_the_base_model_has_the_size_of_the_reference() -> None:
    trainer = build(load("flow_100k"))
    encoder, field = (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(trainer.abstract)[network]))
        for network in ("encoder", "field")
    )
    assert (round(encoder / 1e6, 1), round(field / 1e6, 1)) == (13.4, 26.5)


def test_the_full_synthesizer_builds() -> None:
    config = load("flow_100k")
    config.data.spec = "surge_xt"
    trainer, _ = lower(config)
    assert trainer.parameter_count() == parameters_by_hand("", columns=300)


def test_the_cnn_encoder_builds() -> None:
    config = load("flow_100k")
    config.model.encoder.kind = "cnn"
    assert build(config).parameter_count() > 20e6


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_value_is_explained_in_important(name: str) -> None:
    keys = load(name).to_dict()
    assert keys.keys() == load("important").to_dict().keys()
