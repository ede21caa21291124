"""Figures of the processes of a run, and the line at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_collections
import pytest

from synthjax import distributed, host_figures, run_summary
from synthjax.logbook import Totals


def waits(*seconds: float) -> dict[int, dict[str, float]]:
    return {index: {"step_seconds": 1.0, "data_wait_seconds": wait} for index, wait in enumerate(seconds)}


@pytest.mark.parametrize(
    ("seconds", "named"),
    [
        ((0.0, 0.0, 0.3, 0.0), [2]),
        ((0.01, 0.02, 0.09, 0.01), []),  # Not worth a word.
        ((0.5, 0.5, 0.6, 0.5), []),  # All wait: no straggler, but a slow loader.
        ((0.4, 0.05, 0.05, 0.5), []),  # Half of them is usual.
        ((0.0, 0.0, 0.9), [2]),
    ],
)
def test_a_straggler_waits_for_data_where_others_do_not(seconds: tuple[float, ...], named: list[int]) -> None:
    assert host_figures.stragglers(waits(*seconds)) == named


class Store:
    """The coordinator's store."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


def test_process_0_sees_what_the_others_last_left(monkeypatch: pytest.MonkeyPatch) -> None:
    store, mine = Store(), SimpleNamespace(index=1)
    monkeypatch.setattr(distributed, "key_value_store", lambda: store)
    monkeypatch.setattr(host_figures.jax, "process_index", lambda: mine.index)
    assert host_figures.exchange({"a": 1.0}) == {1: {"a": 1.0}}
    assert host_figures.exchange({"a": 2.0}) == {1: {"a": 2.0}}
    mine.index = 0
    assert host_figures.exchange({"a": 3.0}) == {0: {"a": 3.0}, 1: {"a": 2.0}}


def test_one_process_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "key_value_store", lambda: None)
    assert host_figures.exchange({"a": 1.0}) == {0: {"a": 1.0}}


def device(kind: str) -> Any:
    return SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(("kind", "told"), [("NVIDIA H100 80GB HBM3", "(MFU 50.0 %)"), ("cpu", "TFLOP/s a device, ")])
def test_the_summary_tells_rates_waits_and_restarts(kind: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_summary.jax, "devices", lambda: [device(kind)])
    monkeypatch.setattr(run_summary.jax, "device_count", lambda: 2)
    config = ml_collections.ConfigDict({"data": {"batch_size": 64}})
    totals = Totals(flops_per_step=2 * 0.5 * 989e12 * 0.25, steps=100, seconds=25.0, waited=0.5)
    line = run_summary.summary(totals, config, starts=3)
    assert line.startswith("100 steps measured, 256.0 samples/s, 0.25 s a step, data wait 2.0 %, 494 TFLOP/s")
    assert told in line
    assert line.endswith("restarts 2")


def test_a_run_without_a_measured_step_has_a_summary_too() -> None:
    config = ml_collections.ConfigDict({"data": {"batch_size": 64}})
    assert run_summary.summary(Totals(), config, starts=1) == "no step was measured; restarts 0"
