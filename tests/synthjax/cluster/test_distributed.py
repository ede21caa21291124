"""Flags and messages of several processes. Real ones run in test_multihost_train.py."""

from __future__ import annotations

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from synthjax.cluster import distributed
from synthjax.cluster.launchers import Cluster


@pytest.fixture(autouse=True, scope="module")
def parsed() -> None:
    distributed.define()
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (cli.Failure("no disk", 1), 1, "no disk"),
        (UserError("no train.h5"), 2, "no train.h5"),
        (PermissionError("not yours"), 2, "not yours"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(3), 3, "ended"),
        (SystemExit("why"), 1, "why"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
        (
            jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore"),
            1,
            "lost another process (UNKNOWN: Gloo all-reduce failed: Connection closed by peer); "
            "the same command goes on",
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), 1, "JaxRuntimeError: RESOURCE_EXHAUSTED"),
    ],
)
def test_failures_are_described_in_a_line(error: BaseException, code: int, message: str) -> None:
    assert distributed._describe(error) == (code, message)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"process_count": 2}, "--coordinator"),
        ({"process_count": 2, "process_index": 0}, "--coordinator"),
        ({"process_count": 2, "coordinator": "a:1"}, "--process_index"),
        ({"process_count": 2, "coordinator": "a:1", "process_index": 2}, "process 2 of 2"),
        ({"coordinator": "a:1"}, "need --process_count"),
        ({"process_index": 0}, "need --process_count"),
    ],
)
def test_incomplete_flags_are_refused(values: dict[str, object], words: str) -> None:
    with flagsaver.flagsaver(**values), pytest.raises(UserError, match=words):
        distributed._cluster()


def test_flags_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "JAX_COORDINATOR_ADDRESS": "b:2"}.items():
        monkeypatch.setenv(name, value)
    assert distributed._cluster() == Cluster("b:2", 4, 3)
    with flagsaver.flagsaver(process_count=2, coordinator="a:1", process_index=1):
        assert distributed._cluster() == Cluster("a:1", 2, 1)
    with flagsaver.flagsaver(process_count=1):
        assert distributed._cluster() is None


def test_one_process_joins_nobody_and_agrees_with_itself() -> None:
    with flagsaver.flagsaver(process_count=1), distributed.joined():
        assert distributed.key_value_store() is None
        assert distributed.is_main()
        assert distributed.main_says(True)
        assert not distributed.main_says(False)
        distributed.require_same({"anything": object()}, "")
