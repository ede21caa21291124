"""The line at the end of a run."""

from __future__ import annotations

from types import SimpleNamespace

import ml_collections
import pytest

from synthjax.training import logbook as logbook_module
from synthjax.training.display import TrainingDisplay
from synthjax.training.logbook import Logbook, Totals
from synthjax.training.writers import Writers

CONFIG = ml_collections.ConfigDict({"data": {"batch_size": 64}, "train": {"log_every": 1}})


def summary(totals: Totals, starts: int) -> str:
    logbook = Logbook(Writers([]), TrainingDisplay(0, 100, enabled=False), CONFIG)
    logbook.totals = totals
    try:
        return logbook.summary(starts)
    finally:
        logbook.close()


@pytest.mark.parametrize(("kind", "shown"), [("NVIDIA H100 80GB HBM3", "(MFU 50.0 %)"), ("cpu", "TFLOP/s a device, ")])
def test_the_summary_shows_rates_waits_and_restarts(kind: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook_module.jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(logbook_module.jax, "device_count", lambda: 2)
    line = summary(Totals(flops_per_step=2 * 0.5 * 989e12 * 0.25, steps=100, seconds=25.0, waited=0.5), starts=3)
    assert line.startswith("100 steps measured, 256.0 samples/s, 0.25 s a step, data wait 2.0 %, 494 TFLOP/s")
    assert shown in line
    assert line.endswith("restarts 2")


def test_a_run_without_a_measured_step_has_a_summary_too() -> None:
    assert summary(Totals(), starts=1) == "no step was measured; restarts 0"
