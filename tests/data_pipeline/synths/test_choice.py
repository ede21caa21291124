"""The synthesizer that renders a spec, and the message if it is not installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Continuous
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.choice import SYNTHS, instrument, open_synth, synth_for, why_no_renderer
from data_pipeline.synths.protocol import SynthSettings
from data_pipeline.synths.surge import instrument as surge_xt
from data_pipeline.synths.surge.instrument import INSTALLED_PLUGIN, INSTRUMENT, plugin_path
from data_pipeline.synths.surge.patch import differences, read_preset
from tests.helpers import REPOSITORY

SPECS = {name: load_spec(name) for name in ("subtractive", "surge_simple", "surge_xt")}
NOTE = SPECS["subtractive"].note_params
OTHER = ParamSpec("dx7", (Continuous("operator_1_level", 0.0, 1.0),), NOTE)


def edited(spec: ParamSpec, name: str) -> ParamSpec:
    """The spec under another name, with another order of parameters and narrower ranges."""
    first, *others = spec.synth_params
    narrowed = [
        replace(parameter, max=parameter.min + 0.5 * (parameter.max - parameter.min))
        if isinstance(parameter, Continuous)
        else parameter
        for parameter in others
    ]
    return ParamSpec(name, (*narrowed, first), spec.note_params)


@pytest.mark.parametrize(
    ("name", "synth"), [("subtractive", "subtractive"), ("surge_simple", "surge_xt"), ("surge_xt", "surge_xt")]
)
@pytest.mark.parametrize("plugin", ["", "some.vst3"])
def test_bundled_specs_have_their_synthesizers(name: str, synth: str, plugin: str) -> None:
    """Surge XT's plugin may be anywhere; the built-in synthesizer needs none."""
    settings = synth_for(SPECS[name], plugin)
    assert settings == SynthSettings(synth, SPECS[name], plugin if synth == "surge_xt" else "")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("new_name", ["mine", "surge_xt", "subtractive"])
def test_edited_spec_is_rendered_as_the_one_it_was_made_of(name: str, new_name: str) -> None:
    """The names of the parameters decide, not the name of the spec."""
    spec = edited(SPECS[name], new_name)
    settings = synth_for(spec)
    assert settings.synth == synth_for(SPECS[name]).synth
    assert settings.spec.content_hash == spec.content_hash != SPECS[name].content_hash
    if settings.synth == "surge_xt":
        values = spec.decode(spec.sample(0, [0], [0])[0])
        found = INSTRUMENT.preset_files(spec, [values], "", "")[".vstpreset"]
        assert differences(read_preset(found), values, SPECS[name]) == []


def test_spec_with_fewer_parameters_of_surge_xt_is_known_by_the_name_of_its_base_patch() -> None:
    """Parameters that the spec leaves out stay as in the base patch."""
    fewer = SPECS["surge_simple"].synth_params[:5]
    assert synth_for(ParamSpec("surge_simple", fewer, NOTE)).synth == "surge_xt"
    with pytest.raises(UserError, match="spec mine"):
        synth_for(ParamSpec("mine", fewer, NOTE))


def test_any_other_spec_is_that_of_the_plugin() -> None:
    assert synth_for(OTHER, "dx7.vst3") == SynthSettings("vst3", OTHER, "dx7.vst3")
    assert synth_for(OTHER, "dx7.vst3", "bass.vstpreset") == SynthSettings("vst3", OTHER, "dx7.vst3", "bass.vstpreset")


@pytest.mark.parametrize("name", ["dx7", "surge_simple", "surge_xt", "subtractive"])
def test_spec_that_nobody_knows_is_one_line(name: str) -> None:
    """The name of a spec alone does not make it one of Surge XT."""
    with pytest.raises(UserError, match=f"no synthesizer here knows spec {name} .*--plugin") as caught:
        synth_for(replace(OTHER, name=name))
    assert "\n" not in str(caught.value)
    assert synth_for(replace(OTHER, name=name), "dx7.vst3").synth == "vst3"


def test_base_patch_of_ones_own_is_never_ignored() -> None:
    assert synth_for(SPECS["surge_simple"], "surge.vst3", "mine.vstpreset").synth == "vst3"
    with pytest.raises(UserError, match=r"--preset=mine\.vstpreset .* --plugin"):
        synth_for(SPECS["surge_simple"], preset="mine.vstpreset")


def test_built_in_synthesizer_is_always_at_hand() -> None:
    settings = synth_for(SPECS["subtractive"])
    assert why_no_renderer(settings) is None
    assert open_synth(settings).name == "subtractive"


def test_every_synthesizer_of_this_package_is_in_the_list_by_its_own_name() -> None:
    files = (REPOSITORY / "data_pipeline" / "synths").rglob("*.py")
    found = {file for file in files if "\nINSTRUMENT = " in file.read_text()}
    assert {".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in found} == set(SYNTHS.values())
    assert [instrument(name).name for name in SYNTHS] == list(SYNTHS)


def test_synthesizer_of_another_module_is_not_checked() -> None:
    assert why_no_renderer(SynthSettings("tests.data_pipeline.scripted_synth", OTHER)) is None


def test_plugin_is_looked_for_where_it_will_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is the named one, else that of the environment, else that of ``make surge-xt``."""
    pytest.importorskip("pedalboard", reason="needs pedalboard: pip install 'synthjax[render]'")
    assert surge_xt.CHECKOUT == REPOSITORY
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(surge_xt, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.delenv("SURGE_XT_PLUGIN", raising=False)
    spec = SPECS["surge_simple"]
    assert why_no_renderer(synth_for(spec)) == (
        f"there is no plugin at '{INSTALLED_PLUGIN}': name a .vst3 with --plugin, or fetch Surge XT with make surge-xt"
    )
    beside = tmp_path / "checkout" / INSTALLED_PLUGIN
    beside.mkdir(parents=True)
    assert plugin_path(synth_for(spec)) == str(beside)
    assert why_no_renderer(synth_for(spec)) is None
    Path(INSTALLED_PLUGIN).mkdir(parents=True)
    assert plugin_path(synth_for(spec)) == INSTALLED_PLUGIN
    assert why_no_renderer(synth_for(spec)) is None
    monkeypatch.setenv("SURGE_XT_PLUGIN", "there.vst3")
    assert "'there.vst3'" in str(why_no_renderer(synth_for(spec)))
    Path("there.vst3").touch()
    assert why_no_renderer(synth_for(spec)) is None
    assert "'here.vst3'" in str(why_no_renderer(synth_for(spec, "here.vst3")))


def test_other_plugin_must_be_named_and_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pedalboard", reason="needs pedalboard: pip install 'synthjax[render]'")
    plugin, preset = tmp_path / "dx7.vst3", tmp_path / "bass.vstpreset"
    monkeypatch.setenv("SURGE_XT_PLUGIN", str(tmp_path))  # Names Surge XT's plugin only.
    assert why_no_renderer(SynthSettings("vst3", OTHER)) == "there is no plugin at '': name a .vst3 with --plugin"
    assert str(plugin) in str(why_no_renderer(synth_for(OTHER, str(plugin))))
    plugin.touch()
    assert why_no_renderer(synth_for(OTHER, str(plugin))) is None
    assert str(preset) in str(why_no_renderer(synth_for(OTHER, str(plugin), str(preset))))
    preset.touch()
    assert why_no_renderer(synth_for(OTHER, str(plugin), str(preset))) is None


def test_pedalboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pedalboard", None)
    reason = why_no_renderer(synth_for(SPECS["surge_simple"], str(tmp_path)))
    assert reason == "plugins need pedalboard (GPL-3): pip install 'synthjax[render]'"
    assert why_no_renderer(synth_for(SPECS["subtractive"])) is None
