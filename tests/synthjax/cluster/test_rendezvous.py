"""Processes that find each other before JAX connects them, and what they say if they do not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from data_pipeline.console.cli import UserError
from synthjax.cluster import rendezvous
from synthjax.cluster.launchers import Cluster
from tests.helpers import REPOSITORY
from tests.synthjax.multihost import free_port

JOIN = """
from data_pipeline.console import cli
from synthjax.cluster import distributed

def main(argv):
    with distributed.joined():
        pass

distributed.define()
cli.run(main)
"""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken, and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def joining(index: int, coordinator: str) -> tuple[int, list[str]]:
    """Exit code and lines of stderr of one real process of two, whose other does not come."""
    flags = ["--process_count=2", f"--process_index={index}", f"--coordinator={coordinator}", "--join_seconds=1"]
    result = subprocess.run(
        [sys.executable, "-c", JOIN, *flags],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    return result.returncode, result.stderr.splitlines()


@pytest.mark.parametrize("index", [0, 1])
def test_a_coordinator_whose_name_nobody_knows(index: int) -> None:
    code, (_, line) = joining(index, f"nowhere.invalid:{free_port()}")
    assert code == 2
    assert line.startswith(f"error: process {index} could not join the others at nowhere.invalid:")
    assert " within 1 s: " in line


def test_a_coordinator_that_is_silent(silent_port: int) -> None:
    code, (_, line) = joining(1, f"127.0.0.1:{silent_port}")
    assert code == 2
    assert line == f"error: process 1 could not join the others at 127.0.0.1:{silent_port} within 1 s: no answer"


def test_a_coordinator_whose_port_is_taken(silent_port: int) -> None:
    code, (_, line) = joining(0, f"127.0.0.1:{silent_port}")
    assert code == 2
    assert line.startswith(f"error: process 0 cannot listen at port {silent_port}: Address already in use")


def test_a_coordinator_to_whom_nobody_comes() -> None:
    code, (_, line) = joining(0, f"127.0.0.1:{free_port()}")
    assert code == 2
    assert line.endswith(" within 1 s: these processes did not come: 1")


def meeting(pool: ThreadPoolExecutor, coordinator: str, count: int, index: int, seconds: float = 60) -> Future:
    return pool.submit(rendezvous.meet, Cluster(coordinator, count, index), seconds)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_processes_meet_though_process_0_is_late_and_strangers_come(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        others = [meeting(pool, f"{host}:{port}", 4, index) for index in (1, 2)]
        time.sleep(0.5)
        others.append(meeting(pool, f"{host}:{port}", 4, 0))
        silent, loud = (_connect(port) for _ in range(2))
        # It sends the number of a process and goes away: that process is still to come.
        with _connect(port) as gone:
            gone.sendall(b"synthjax process 3 of 4\n")
        loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.5)
        assert not any(process.done() for process in others)
        meeting(pool, f"{host}:{port}", 4, 3).result()
        for process in others:
            process.result()
        silent.close()
        loud.close()


def test_every_process_names_those_that_do_not_come() -> None:
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        for process in [meeting(pool, coordinator, 11, index, seconds=1) for index in (0, 1)]:
            with pytest.raises(UserError, match=r"did not come: 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.$"):
                process.result()


def test_another_program_at_the_port_is_not_taken_for_process_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        process = meeting(pool, f"127.0.0.1:{server.getsockname()[1]}", 2, 1, seconds=1)
        while not process.done():
            server.settimeout(0.5)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(b"220 mail\r\n")
        with pytest.raises(UserError, match="another program answers there"):
            process.result()


def _connect(port: int) -> socket.socket:
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
