"""The example of docs/synthesizers.md, installed as a package of somebody else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from data_pipeline.params.spec import load_spec
from data_pipeline.shards.reader import PARAM_ARRAY, ShardReader
from tests.helpers import REPOSITORY, run_cli

DOCS = REPOSITORY / "docs" / "synthesizers.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of the example, beside the metadata that pip would write."""
    text = DOCS.read_text(encoding="utf-8")
    package = tmp_path / "sine_synth"
    package.mkdir()
    for name, block in re.findall(r"`sine_synth/([\w.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (package / name).write_text(block, encoding="utf-8")
    metadata = tmp_path / "sine_synth-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sine-synth\nVersion: 1.0\n", encoding="utf-8")
    [entry] = re.findall(r"^sine = \"(\w+)\"$", text, re.MULTILINE)
    (metadata / "entry_points.txt").write_text(f"[synthjax.synths]\nsine = {entry}\n", encoding="utf-8")
    return package


def test_the_example_renders_and_reads_its_own_files(package: Path, tmp_path: Path) -> None:
    spec, path = package / "sine.json", f"{tmp_path}{os.pathsep}{REPOSITORY}"
    result = run_cli(
        *("data_pipeline.render_shards", "--config=configs/render_dexed.py", "--config.synth=sine"),
        *(f"--config.spec={spec}", f"--output={tmp_path / 'shards'}", "--shards=0", "--samples_per_shard=4"),
        PYTHONPATH=path,
    )
    assert result.returncode == 0, result.stderr
    shard = ShardReader(tmp_path / "shards" / "shard-0.h5")
    assert shard.read_rows(PARAM_ARRAY, range(4)).shape == (4, load_spec(str(spec)).width)
    (tmp_path / "bright.sine").write_text("0.5 0.25\n", encoding="utf-8")
    shown = run_cli("data_pipeline.presets", "show", "--json", tmp_path / "bright.sine", PYTHONPATH=path)
    assert shown.returncode == 0, shown.stderr
    values = {(value["group"], value["label"]): value["text"] for value in json.loads(shown.stdout)[0]["values"]}
    assert values == {("Oscillator", "Level"): "0.500", ("Envelope", "Attack"): "0.250"}
