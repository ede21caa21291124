"""The command that drafts a spec."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import assert_usage_error, run_cli


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
