"""Figures of the processes of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from synthjax.cluster import distributed
from synthjax.training import process_figures


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
    assert process_figures.stragglers(waits(*seconds)) == named


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
    monkeypatch.setattr(process_figures.jax, "process_index", lambda: mine.index)
    assert process_figures.exchange({"a": 1.0}) == {1: {"a": 1.0}}
    assert process_figures.exchange({"a": 2.0}) == {1: {"a": 2.0}}
    mine.index = 0
    assert process_figures.exchange({"a": 3.0}) == {0: {"a": 3.0}, 1: {"a": 2.0}}


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "key_value_store", lambda: None)
    assert process_figures.exchange({"a": 1.0}) == {0: {"a": 1.0}}
