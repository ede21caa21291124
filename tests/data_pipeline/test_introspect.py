"""The command that drafts a spec."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.params.spec import load_spec
from tests.data_pipeline.fake_vst3 import container
from tests.helpers import REPOSITORY, assert_usage_error, run_cli

# A module in place of pedalboard, for commands: a file with two plugins, one of whose parameters is called Pitch.
PEDALBOARD = """
from tests.data_pipeline.fake_vst3 import DeafVst3, FakeParameter

class VST3Plugin(DeafVst3):
    def __init__(self, path, plugin_name=None):
        if plugin_name is None:
            raise ValueError("contains 2 plugins")
        super().__init__(["cutoff", "pitch", "mod_wheel", "program"])
        self.shown["wave"] = FakeParameter(self, "cutoff", ("Saw", "Square"))

    @staticmethod
    def get_plugin_names_for_file(filename):
        return ["Synth", "Synth FX"]
"""


def test_the_command_line(tmp_path: Path) -> None:
    module, output = "data_pipeline.introspect", tmp_path / "spec.json"
    assert_usage_error(run_cli(module), "usage:")
    assert_usage_error(run_cli(module, "a.vst3"), "usage:")
    assert_usage_error(run_cli(module, "a.vst3", "--output=spec.txt"), "must end in .json")
    assert_usage_error(run_cli(module, "a.vst3", f"--output={output}"), "no plugin at 'a.vst3': give the path")
    assert_usage_error(run_cli(module, "a.vst3", f"--output={output}", "--preset=none"), "cannot read the preset")
    output.write_text("edited")
    assert_usage_error(run_cli(module, "a.vst3", f"--output={output}"), "exists")
    assert output.read_text() == "edited"


@pytest.fixture
def with_pedalboard(tmp_path: Path) -> str:
    """PYTHONPATH on which a command finds ``PEDALBOARD``."""
    (tmp_path / "pedalboard.py").write_text(PEDALBOARD)
    return os.pathsep.join((str(tmp_path), str(REPOSITORY)))


def test_one_of_several_plugins_is_drafted(tmp_path: Path, with_pedalboard: str) -> None:
    (tmp_path / "some.vst3").touch()
    arguments = ("data_pipeline.introspect", tmp_path / "some.vst3", f"--output={tmp_path / 'spec.json'}")
    assert_usage_error(run_cli(*arguments, PYTHONPATH=with_pedalboard), "holds 2 plugins", "--plugin_name (Synth, Syn")
    foreign = tmp_path / "foreign.vstpreset"
    foreign.write_bytes(container({"Comp": b"state"}, b"F" * 32))
    result = run_cli(*arguments, "--plugin_name=Synth", f"--preset={foreign}", PYTHONPATH=with_pedalboard)
    assert_usage_error(result, "the preset belongs to another plugin")
    result = run_cli(*arguments, "--plugin_name=Synth", PYTHONPATH=with_pedalboard)
    assert result.returncode == 0, result.stderr
    assert "left out: 2 (mod_wheel, program)" in result.stdout
    spec = load_spec(str(tmp_path / "spec.json"))
    assert [parameter.name for parameter in spec.synth_params] == ["cutoff", "pitch_", "wave"]
