"""A run of the k-osc task, trained, measured and refused as a person would run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import REPOSITORY, assert_usage_error, run_cli
from tests.synthjax.k_osc_runs import TINY

pytestmark = pytest.mark.slow  # All tests need the trained run.

ROWS = 300  # A whole batch of held-out rows and a part.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression, whose step compiles soonest."""
    folder = tmp_path_factory.mktemp("runs") / "k_osc"
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    config = "--config=configs/k_osc.py:model=sorted_mse,k=2"
    result = run_cli("synthjax.train", config, f"--workdir={folder}", *flags, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_model_is_measured_beside_random_answers(workdir: Path, tmp_path: Path) -> None:
    arguments = (f"--workdir={workdir}", f"--rows={ROWS}", "--checkpoint=latest")
    result = run_cli("synthjax.evaluate", *arguments, f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    about, found = metrics["about"], metrics["metrics"]
    assert (about["checkpoint"], metrics["count"], about["split"]) == (6, ROWS, "test")
    names = {"lsd", "spectral_l1", "chamfer", "mse", "linear_assignment_distance", "linear_assignment_cost"}
    for kind in ("prediction", "random"):
        assert set(found[kind]) == names
        assert all(one["low"] < one["mean"] < one["high"] for one in found[kind].values())
    # A trained mean is nearer to uniform rows than another uniform row is: 1/3 against 2/3.
    assert found["random"]["mse"]["mean"] == pytest.approx(2 / 3, rel=0.1)
    with (tmp_path / "per_sample.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == ROWS
    assert np.mean([float(line["lsd"]) for line in lines]) == pytest.approx(
        found["prediction"]["lsd"]["mean"], rel=1e-6
    )
    assert "lsd, random" in result.stdout


def test_what_is_made_for_synthesizers_refuses_it(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "sound.wav").write_bytes(b"")
    result = run_cli("synthjax.predict", f"--workdir={workdir}", tmp_path / "sound.wav", f"--output={tmp_path / 'out'}")
    assert_usage_error(result, "k-osc task", "only evaluate takes it")


@pytest.mark.parametrize(
    ("flag", "reason"),
    [("--render", "has no data set and no synthesizer"), ("--steps=9", "of kind regression answers without a sampler")],
)
def test_what_has_no_effect_is_refused(workdir: Path, tmp_path: Path, flag: str, reason: str) -> None:
    result = run_cli("synthjax.evaluate", f"--workdir={workdir}", flag, f"--output={tmp_path / 'out'}")
    assert_usage_error(result, f"{flag} would be ignored: ", reason)
    assert not (tmp_path / "out").exists()


def test_another_variant_of_the_task_is_another_run(workdir: Path) -> None:
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    config = "--config=configs/k_osc.py:model=sorted_mse,k=2,asymmetric"
    result = run_cli("synthjax.train", config, f"--workdir={workdir}", *flags, cwd=REPOSITORY)
    assert_usage_error(result, "holds another run", "k_osc.symmetric True -> False")
