"""Variants by name: what each changes, how they combine, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from data_pipeline.console.cli import UserError
from synthjax.configs import flow_20k, flow_50k, flow_100k, important
from synthjax.runs.variants import VARIANTS, apply_variants
from tests.helpers import assert_usage_error, run_cli

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def changes(config: ml_collections.ConfigDict, base: ml_collections.ConfigDict | None = None) -> dict[str, Any]:
    """Keys whose values differ from the base experiment; none may be new."""
    now, before = flatten(config), flatten(base or important.get_config())
    assert now.keys() == before.keys()
    return {key: value for key, value in now.items() if value != before[key]}


def both_networks(dim: int, heads: int, layers: int) -> dict[str, int]:
    sizes = {"dim": dim, "heads": heads, "layers": layers}
    return {f"model.{network}.{key}": value for network in ("encoder", "field") for key, value in sizes.items()}


# DESIGN.md, section 5.
EXPECTED = {
    "batch_size_low": {"data.batch_size": 64},
    "batch_size_high": {"data.batch_size": 256},
    "lr_low": {"optim.lr": 5e-5},
    "lr_high": {"optim.lr": 5e-4},
    "weight_decay": {"optim.weight_decay": 0.01},
    "projection_penalty_low": {"flow.projection_penalty": 0.001},
    "ffn_small": {"model.field.ff_dim": 256},
    "model_enlarged": both_networks(768, 12, 12),
    "model_reduced_75": both_networks(384, 6, 6),
    "model_reduced_50": both_networks(256, 4, 4),
    "tokens_64": {"model.field.tokens": 64},
    "tokens_256": {"model.field.tokens": 256},
}


def test_every_published_variant_exists() -> None:
    assert VARIANTS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_variant_changes_what_its_name_says_and_nothing_else(name: str) -> None:
    assert changes(important.get_config(name)) == EXPECTED[name]


@pytest.mark.parametrize(("module", "steps"), [(flow_20k, 40_000), (flow_50k, 80_000), (flow_100k, 50_000)])
def test_variants_apply_to_every_data_set(module: Any, steps: int) -> None:
    config = module.get_config("lr_high,tokens_64")
    assert config.train.steps == steps
    assert changes(config, module.get_config()) == {"optim.lr": 5e-4, "model.field.tokens": 64}


@pytest.mark.parametrize("arg", ["lr_high,tokens_64,model_reduced_50", "model_reduced_50,tokens_64,lr_high"])
def test_variants_combine_in_any_order(arg: str) -> None:
    expected = EXPECTED["lr_high"] | EXPECTED["tokens_64"] | EXPECTED["model_reduced_50"]
    assert changes(important.get_config(arg)) == expected


@pytest.mark.parametrize("arg", ["", ","])
def test_an_empty_argument_changes_nothing(arg: str) -> None:
    assert changes(important.get_config(arg)) == {}


@pytest.mark.parametrize(("length", "steps"), [("steps=500k", 500_000), ("steps=1200k", 1_200_000)])
def test_long_runs_combine_with_variants(length: str, steps: int) -> None:
    config = flow_100k.get_config(f"{length},lr_low")
    assert changes(config, flow_100k.get_config()) == {"train.steps": steps, "optim.lr": 5e-5}


@pytest.mark.parametrize("arg", ["lr_medium", "lr_high,lr_medium", "LR_HIGH", "steps=500k", "optim.lr=1"])
def test_an_unknown_variant_is_refused_with_the_choices(arg: str) -> None:
    with pytest.raises(UserError) as refusal:
        important.get_config(arg)
    assert f"unknown variant {arg.split(',')[-1]!r}" in str(refusal.value)
    for name in EXPECTED:
        assert name in str(refusal.value)


def test_lengths_are_among_the_choices_of_their_config() -> None:
    with pytest.raises(UserError, match=r"'steps=1k': choose from .*steps=1200k, steps=500k"):
        flow_100k.get_config("steps=1k")


@pytest.mark.parametrize(
    ("arg", "key"),
    [
        ("lr_low,lr_high", r"optim\.lr"),
        ("tokens_64,ffn_small,tokens_256", r"model\.field\.tokens"),
        ("model_reduced_50,model_enlarged", r"model\.encoder\.dim"),
    ],
)
def test_variants_that_set_the_same_value_are_refused(arg: str, key: str) -> None:
    first, last = arg.split(",")[0], arg.split(",")[-1]
    with pytest.raises(UserError, match=f"variants {first} and {last} both set {key}: choose one"):
        important.get_config(arg)


def test_lengths_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"both set train\.steps"):
        flow_100k.get_config("steps=500k,steps=1200k")


def test_a_table_cannot_add_keys_to_a_locked_config() -> None:
    config = important.get_config()
    config.lock()
    with pytest.raises((AttributeError, KeyError), match="learning_rate"):
        apply_variants(config, "typo", {"typo": {"optim.learning_rate": 1.0}})


def parse(*arguments: str) -> ml_collections.ConfigDict:
    """The config as ``synthjax.train`` gets it from the command line."""
    values, argv = flags.FlagValues(), ["train", *arguments]
    holder = config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values, sys_argv=argv)
    values(argv)
    return holder.value


def test_values_are_set_on_the_command_line_after_the_variants() -> None:
    config = parse(f"--config={CONFIGS / 'flow_20k.py'}:lr_high,tokens_64", "--config.optim.lr=2e-4")
    assert config.optim.lr == 2e-4
    assert config.model.field.tokens == 64
    assert config.train.steps == 40_000


@pytest.mark.parametrize("key", ["optim.learning_rate", "optimizer.lr", "model.field.dims"])
def test_an_unknown_key_on_the_command_line_is_refused(key: str) -> None:
    with pytest.raises((AttributeError, KeyError, flags.Error)):
        parse(f"--config={CONFIGS / 'important.py'}", f"--config.{key}=1")


# DESIGN.md, section 5: an unknown variant or key is an error that lists what exists.
@pytest.mark.parametrize(
    ("key", "existing"), [("optim.learning_rate", ("lr", "clip_norm")), ("optimizer.lr", ("optim", "train"))]
)
def test_the_command_tells_an_unknown_key_with_those_that_exist(
    tmp_path: Path, key: str, existing: tuple[str, ...]
) -> None:
    arguments = f"--config={CONFIGS / 'important.py'}", f"--workdir={tmp_path / 'run'}", f"--config.{key}=1"
    assert_usage_error(run_cli("synthjax.train", *arguments), key, *existing)


def test_a_locked_config_refuses_new_keys() -> None:
    config = parse(f"--config={CONFIGS / 'important.py'}")
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optim.learning_rate = 1.0


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises((flags.Error, TypeError, ValueError)):
        parse(f"--config={CONFIGS / 'important.py'}", "--config.train.steps=many")
