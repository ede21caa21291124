"""The renderer of commands that render."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Continuous
from data_pipeline.params.spec import load_spec
from synthjax.inference import renderer_flags


class Losing:
    """A renderer whose synthesizer was opened at the second try."""

    def __init__(self, *_: Any) -> None:
        self.restarts: list[str] = []

    def __enter__(self) -> Losing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_until_ready(self) -> None:
        self.restarts.append("crash: killed by signal 9")


def given(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"plugin": "", "plugin_name": "", "preset": "", "allow_other_version": False, **values})


def test_lost_workers_are_told_in_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(renderer_flags, "PatchRenderer", Losing)
    monkeypatch.setattr(flags, "FLAGS", given(workers=2))
    with renderer_flags.start_renderer(load_spec("subtractive")) as renderer:
        renderer.restarts.append("timeout: no answer in 60 s")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "2 render workers lost, the last one: timeout: no answer in 60 s\n"


def test_a_plugin_that_would_be_ignored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "FLAGS", given(plugin="dx7.vst3"))
    with pytest.raises(UserError, match=r"--plugin=dx7.vst3 would be ignored: subtractive renders spec subtractive"):
        renderer_flags.find_synth(load_spec("subtractive"))
    monkeypatch.setattr(flags.FLAGS, "preset", "bass.vstpreset")  # Names the plugin's own patch: no built-in one's.
    with pytest.raises(UserError, match=r"there is no plugin at 'dx7.vst3'"):
        renderer_flags.find_synth(load_spec("subtractive"))


def test_a_plugin_name_reaches_the_synthesizer_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "both.vst3"
    plugin.touch()
    monkeypatch.setattr(flags, "FLAGS", given(plugin=str(plugin), plugin_name="Mono"))
    monkeypatch.setattr(renderer_flags, "why_no_renderer", lambda _: None)
    other = replace(load_spec("subtractive"), synth_params=(Continuous("drive", 0.0, 1.0),), interchangeable=())
    assert renderer_flags.find_synth(other).plugin_name == "Mono"
    assert renderer_flags.find_synth(load_spec("surge_simple")).plugin_name == "Mono"
    monkeypatch.setattr(flags.FLAGS, "plugin", "")
    with pytest.raises(UserError, match=r"--plugin_name=Mono would be ignored: subtractive renders spec subtractive"):
        renderer_flags.find_synth(load_spec("subtractive"))
