"""Flags and messages of several processes. Real ones run in test_multihost_train.py."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from synthjax.cluster import distributed
from synthjax.cluster.launchers import Cluster
from tests.helpers import REPOSITORY, assert_usage_error


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


@pytest.mark.parametrize(
    ("environment", "excluded"),
    [
        ({}, ""),
        ({"http_proxy": "http://p:3128"}, "node1"),
        ({"https_proxy": "http://p:3128", "no_proxy": "a,b"}, "a,b,node1"),
        ({"grpc_proxy": "http://p:3128", "no_proxy": "a,b", "no_grpc_proxy": "c"}, "c,node1"),
    ],
)
def test_the_coordinator_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], excluded: str
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_grpc_proxy", "")  # So that the variable is put back after the test.
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed._reach_without_proxy("node1")
    assert os.environ["no_grpc_proxy"] == excluded  # noqa: SIM112 - gRPC's spelling.


@pytest.mark.parametrize("platform", ["cuda", "nonsense", "tpu"])
def test_a_platform_that_is_not_there_is_named(platform: str) -> None:
    script = (
        "from data_pipeline.console import cli\nfrom synthjax.cluster.distributed import require_devices\n"
        "cli.run(lambda argv: require_devices())"
    )
    environment = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert_usage_error(result, f"JAX_PLATFORMS={platform}: this machine has cpu", "unset it")


def test_one_process_joins_nobody_and_agrees_with_itself() -> None:
    with flagsaver.flagsaver(process_count=1), distributed.joined():
        assert distributed.key_value_store() is None
        assert distributed.is_main()
        assert distributed.main_says(True)
        assert not distributed.main_says(False)
        distributed.require_same({"anything": object()}, "")


NO_HOME = """
import os, pwd
def missing(user):
    raise KeyError(user)
pwd.getpwuid = pwd.getpwnam = missing
from data_pipeline.console import cli
"""


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (
            "from synthjax.cluster import jax_settings\ncli.run(lambda argv: jax_settings.apply())",
            0,
            "warning: compiled programs are not kept, as this user has no home folder: set HOME, or "
            "JAX_COMPILATION_CACHE_DIR to a folder\n",
        ),
        (
            "import sys\nsys.argv.append('--output=~/x')\ncli.run(print)",
            2,
            "error: --output=~/x: this user has no home folder: set HOME, or give the whole path\n",
        ),
        (
            "from types import SimpleNamespace\nfrom data_pipeline.cloud.staging import cache_folder\n"
            "cli.run(lambda argv: cache_folder(SimpleNamespace(url='gs://a/b'), 'data'))",
            2,
            "error: files of gs://a/b need a folder here: set SYNTHJAX_CACHE (this user has no home folder)\n",
        ),
    ],
)
def test_a_user_without_a_home_folder(command: str, code: int, told: str) -> None:
    """As a user of a container has none who is only a number."""
    dropped = ("HOME", "XDG_CACHE_HOME", "SYNTHJAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONPATH"] = str(REPOSITORY)
    script = [sys.executable, "-c", NO_HOME + command]
    result = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment)
    assert (result.returncode, result.stderr) == (code, told)
