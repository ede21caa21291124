"""The real Weights & Biases package, offline."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np
import pytest

from synthjax.runs.workdir import Workdir
from synthjax.training.writers import Writers


@pytest.mark.slow
def test_an_offline_run_is_kept_in_the_workdir_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # Seconds for its service to start.
    config = ml_collections.ConfigDict({"seed": 0, "wandb": True})
    for start in (0, 1):
        writers = Writers.open(Workdir(tmp_path), config, start)
        writers.scalars(start + 1, {"loss": 0.5})
        writers.image(start + 1, "picture", np.zeros((4, 4, 3), np.uint8))
        writers.audio(start + 1, "sound", np.zeros((2, 441), np.float32), 44100)
        writers.close()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id").read_text(encoding="utf-8")
    assert runs
    assert all(f"-{identity}" in run.name for run in runs)  # Runs of one second are numbered behind it.
