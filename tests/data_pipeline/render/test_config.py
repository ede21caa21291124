"""Render configs that are refused."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Continuous
from data_pipeline.params.spec import ParamSpec, spec_json
from data_pipeline.render.config import render_settings
from data_pipeline.synths.drafting import NOTE_PARAMS
from synthjax.configs import quickstart, render_surge_simple
from tests import render_subtractive


def surge(**changes: object) -> ml_collections.ConfigDict:
    config = render_surge_simple.get_config()
    config.update(changes)
    return config


@pytest.fixture
def foreign_spec(tmp_path: Path) -> str:
    """Path of the spec of a plugin that is not Surge XT."""
    path = tmp_path / "dx7.json"
    path.write_text(spec_json(ParamSpec("dx7", (Continuous("algorithm", 0.0, 1.0),), NOTE_PARAMS)))
    return str(path)


def test_another_kind_of_config_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"no config of a rendering, it lacks spec, .*batch_rows.*: use configs/render_"
    ):
        render_settings(quickstart.get_config(), seed=0)
    half = surge()
    del half.max_worker_gib
    with pytest.raises(UserError, match="it lacks max_worker_gib: "):
        render_settings(half, seed=0)


@pytest.mark.parametrize("config", [surge(), surge(spec="surge_xt"), render_subtractive.get_config()])
def test_a_preset_that_would_be_ignored_is_refused(config: ml_collections.ConfigDict) -> None:
    assert render_settings(config, seed=0).synth.synth == config.synth
    with pytest.raises(UserError, match=r"--preset=a.vstpreset would be ignored by synth .* --config.synth=vst3"):
        render_settings(config, seed=0, preset="a.vstpreset")


def test_a_plugin_that_would_be_ignored_is_refused_and_one_that_is_needed_asked_for(foreign_spec: str) -> None:
    with pytest.raises(UserError, match=r"--plugin=dx7.vst3 would be ignored"):
        render_settings(render_subtractive.get_config(), seed=0, plugin="dx7.vst3")
    with pytest.raises(UserError, match=r"synth vst3 needs its plugin: --plugin=PATH"):
        render_settings(surge(synth="vst3", spec=foreign_spec), seed=0)
    with pytest.raises(UserError, match=r"--plugin_name=Mono would be ignored"):
        render_settings(render_subtractive.get_config(), seed=0, plugin_name="Mono")
    several = {"plugin": "dx7.vst3", "plugin_name": "Mono"}
    assert render_settings(surge(synth="vst3", spec=foreign_spec), seed=0, **several).synth.plugin_name == "Mono"


def test_an_unknown_synthesizer_is_refused_with_the_list_of_known_ones() -> None:
    words = "no synthesizer is called 'surge': there are subtractive, surge_xt, dexed, vital, vst3, or the dotted path"
    with pytest.raises(UserError, match=words):
        render_settings(surge(synth="surge"), seed=0)


def test_a_preset_is_the_base_patch_of_any_other_plugin(foreign_spec: str) -> None:
    settings = render_settings(surge(synth="vst3", spec=foreign_spec), seed=0, plugin="dx7.vst3", preset="a.vstpreset")
    assert settings.synth.preset == "a.vstpreset"


def test_a_spec_of_another_plugin_is_refused_with_the_setting_that_renders_it(foreign_spec: str) -> None:
    with pytest.raises(UserError, match=r"no base patch for spec dx7.*; .*another plugin.* --config.synth=vst3$"):
        render_settings(surge(spec=foreign_spec), seed=0, plugin="dx7.vst3")
