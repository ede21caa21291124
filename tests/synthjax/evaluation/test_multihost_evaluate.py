"""Evaluation by several processes is that of one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import REPOSITORY, run_cli, tiny_flags
from tests.synthjax.k_osc_runs import TINY, TINY_FIELD
from tests.synthjax.multihost import finish, start_together

K_OSC = TINY | TINY_FIELD | {"model.field.heads": 2, "model.field.ff_dim": 8}


def k_osc_flags(workdir: Path) -> list[str]:
    changes = [f"--config.{key}={value}" for key, value in K_OSC.items()]
    return ["--config=configs/k_osc.py:k=2,asymmetric", f"--workdir={workdir}", *changes]


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_multihost_evaluation_of_shards(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    assert run_cli("synthjax.train", *tiny_flags(tiny_root, workdir), cwd=REPOSITORY).returncode == 0
    flags = [f"--workdir={workdir}", "--split=val"]
    alone = run_cli("synthjax.evaluate", *flags, f"--output={tmp_path / 'alone'}", cwd=REPOSITORY)
    assert alone.returncode == 0, alone.stderr
    finish(start_together("synthjax.evaluate", [*flags, f"--output={tmp_path / 'together'}"]))
    expected, found = (figures(tmp_path / name) for name in ("alone", "together"))
    assert found.keys() == expected.keys()
    for name, summary in expected["metrics"]["prediction"].items():
        mean = found["metrics"]["prediction"][name]["mean"]
        np.testing.assert_allclose(mean, summary["mean"], rtol=1e-4, atol=1e-5)
    assert {path.name for path in (tmp_path / "together").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


@pytest.mark.slow
def test_multihost_training_and_evaluation_of_the_k_osc_task(tmp_path: Path) -> None:
    workdirs = tmp_path / "alone", tmp_path / "together"
    assert run_cli("synthjax.train", *k_osc_flags(workdirs[0]), cwd=REPOSITORY).returncode == 0
    finish(start_together("synthjax.train", k_osc_flags(workdirs[1])))
    rows = []
    for workdir in workdirs:
        flags = [f"--workdir={workdir}", "--rows=12", f"--output={workdir / 'out'}"]
        finish(start_together("synthjax.evaluate", flags, processes=2 if workdir.name == "together" else 1))
        with (workdir / "out" / "per_sample.csv").open(newline="") as file:
            rows.append([[float(value) for value in row[2:]] for row in list(csv.reader(file))[1:]])
    assert len(rows[0]) == 12
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-2, atol=1e-3)
