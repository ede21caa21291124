"""Files that older code wrote still open: a data set, a run with its checkpoint, and its evaluation.

``data/before.tar.xz`` was written by the code of 2026-11-27 (commit 1a02488). It holds a data set of eight rows, a flow
trained for two steps with its metrics of ``evaluate --render``, and the metrics of a run of the k-osc task.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.shards.reader import ShardReader
from tests.helpers import REPOSITORY, run_cli

# The config of the run, with the values that came later. The file that made it has other values today.
RUN_CONFIG = """
import json
from synthjax.configs import important

def get_config():
    config = important.get_config()
    with config.ignore_type():
        config.update(json.loads(r'''{saved}'''))
    return config
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(REPOSITORY / "tests" / "data" / "before.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_data_set_is_whole(before: Path) -> None:
    result = run_cli("data_pipeline.check", before / "data")
    assert result.returncode == 0, result.stderr
    assert len(ShardReader(before / "data" / "train.h5")) == 4


def test_the_model_gives_the_rows_that_it_gave(before: Path, tmp_path: Path) -> None:
    run, data = before / "runs" / "flow", before / "data"
    result = run_cli("synthjax.evaluate", f"--workdir={run}", f"--data_root={data}", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    with (
        h5py.File(run / "evaluation" / "test-2" / "predictions.h5") as old,
        h5py.File(tmp_path / "predictions.h5") as new,
    ):
        np.testing.assert_allclose(new["rows"][:], old["rows"][:], atol=1e-4)
        assert list(new["value_names"][:]) == list(old["value_names"][:])


def test_evaluate_keeps_what_render_measured(before: Path) -> None:
    run, data = before / "runs" / "flow", before / "data"
    output = run / "evaluation" / "test-2"
    old = json.loads((output / "metrics.json").read_text())
    result = run_cli("synthjax.evaluate", f"--workdir={run}", f"--data_root={data}")
    assert result.returncode == 0, result.stderr
    new = json.loads((output / "metrics.json").read_text())
    assert new["metrics"]["prediction"]["mss"]["mean"] == old["audio"]["prediction"]["mss"]["mean"]


def test_the_run_goes_on(before: Path, tmp_path: Path) -> None:
    run, data = before / "runs" / "flow", before / "data"
    config = tmp_path / "config.py"
    config.write_text(RUN_CONFIG.format(saved=(run / "config.json").read_text()), encoding="utf-8")
    flags = [f"--config={config}", f"--config.data.root={data}", "--config.train.steps=3"]
    result = run_cli("synthjax.train", *flags, f"--workdir={run}")
    assert result.returncode == 0, result.stderr
    assert "step 2" in result.stderr, result.stderr
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
