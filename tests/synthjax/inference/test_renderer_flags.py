"""The renderer of commands that render."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from absl import flags

from data_pipeline.console.cli import UserError
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


def test_lost_workers_are_told_in_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(renderer_flags, "PatchRenderer", Losing)
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(plugin="", preset="", workers=2))
    with renderer_flags.start_renderer(load_spec("subtractive")) as renderer:
        renderer.restarts.append("timeout: no answer in 60 s")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "2 render workers lost, the last one: timeout: no answer in 60 s\n"


def test_a_plugin_that_would_be_ignored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(plugin="dx7.vst3", preset=""))
    with pytest.raises(
        UserError, match=r"--plugin=dx7.vst3 would be ignored: spec subtractive is that of the built-in"
    ):
        renderer_flags.find_synth(load_spec("subtractive"))
    monkeypatch.setattr(flags.FLAGS, "preset", "bass.vstpreset")  # Names the plugin's own patch: no built-in one's.
    with pytest.raises(UserError, match=r"there is no plugin at 'dx7.vst3'"):
        renderer_flags.find_synth(load_spec("subtractive"))
