"""One program on one process or many (JAX's multi-controller runtime): joining, agreeing, and ending together.

JAX ends the others when a process dies; a process that only fails would leave them waiting in a collective operation.
So a failing process leaves its message with the coordinator, where a thread of every other one waits for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from data_pipeline import cli
from data_pipeline.cli import UserError
from synthjax import clusters
from synthjax.clusters import Cluster

FAILURE, SEEN, TOGETHER = "synthjax/failure", "synthjax/seen", "synthjax/together"
# How long one request for another's failure stays open; how long the coordinator waits for all others to know of a
# failure, and then for them to be gone.
POLL_SECONDS, GRACE_SECONDS, LEAVING_SECONDS = 1.0, 10.0, 1.0


def define() -> None:
    """Defines the flags of ``joined``, for commands that several processes run together."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for a run of several processes that no cluster tells of."
    )
    flags.DEFINE_integer(
        "process_count", None, "How many processes run together; default: as the cluster says, else 1.", lower_bound=1
    )
    flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "heartbeat_seconds", 100, "A process that is silent for so long is dead: the others end.", lower_bound=1
    )
    flags.DEFINE_integer("join_seconds", 300, "How long to wait for the other processes at the start.", lower_bound=1)


@contextmanager
def joined() -> Generator[None, None, None]:
    """Joins the other processes of the run, if there are any; enter before anything touches a device.

    An error inside ends every process with its message. Leaving waits for all.

    Raises:
      UserError: if the cluster is described wrongly or the others do not come.
    """
    if not _initialise():
        yield
        return
    watch = _Watch()
    try:
        yield
        watch.wait_for_all()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        watch.fail(error)
    watch.stop()
    jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this process writes logs and speaks to the terminal."""
    return jax.process_index() == 0


def key_value_store() -> Any:
    """The coordinator's key-value store, for words between processes; None for one that is alone."""
    # JAX has no public way to it; Orbax goes the same way.
    from jax._src import distributed

    return distributed.global_state.client


def main_says(flag: bool) -> bool:
    """Process 0's ``flag``, on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def require_same(values: dict[str, Any], remedy: str) -> None:
    """Raises UserError on every process, naming what differs, unless all have equal values (compared as text)."""
    if jax.process_count() == 1:
        return
    mine = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    everyone = multihost_utils.process_allgather(mine)
    differing = [name for name, column in zip(values, everyone.T, strict=True) if len(set(column.tolist())) > 1]
    if differing:
        raise UserError(f"the processes disagree about {', '.join(differing)}: {remedy}")


def _initialise() -> bool:
    """Joins by flags, environment or TPU runtime; returns whether there are several processes."""
    f, cluster = flags.FLAGS, _cluster()
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": f.heartbeat_seconds,
        "initialization_timeout": f.join_seconds,
    }
    if cluster is not None:
        limits |= {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.count,
            "process_id": cluster.index,
            "local_device_ids": cluster.gpus(os.environ),
            "cluster_detection_method": "deactivate",
        }
    elif f.process_count == 1 or not clusters.on_tpu(os.environ):
        return False
    if cluster is not None:  # JAX aborts without a word of ours if they do not come.
        print(
            f"process {cluster.index} of {cluster.count} meets the others at {cluster.coordinator}, "
            f"waiting {f.join_seconds} s at most",
            file=sys.stderr,
        )
    try:
        jax.distributed.initialize(**limits)
    except (RuntimeError, ValueError) as error:
        where = f" at {cluster.coordinator}" if cluster else ""
        cli.exit_without_threads()
        raise UserError(f"the processes of this run did not meet{where}: {error}") from error
    return jax.process_count() > 1


def _cluster() -> Cluster | None:
    f = flags.FLAGS
    count, index, coordinator = f.process_count, f.process_index, f.coordinator
    if count is None:
        if coordinator or index is not None:
            raise UserError("--coordinator and --process_index need --process_count")
        return clusters.find(os.environ)
    if count == 1:
        return None
    if not coordinator or index is None:
        raise UserError("--process_count above 1 needs --coordinator=HOST:PORT of process 0, and --process_index")
    return Cluster(coordinator, count, index)


class _Watch:
    """Waits for another process's failure, and tells the others of this one's."""

    def __init__(self) -> None:
        self._client = key_value_store()
        self._index, self._count = jax.process_index(), jax.process_count()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="failures", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                code, message = self._client.blocking_key_value_get(FAILURE, int(POLL_SECONDS * 1000)).split("\n", 1)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error) or self._over.is_set():
                    continue
                code, message = "1", "lost the process that coordinates the run (0); the same command goes on"
            if not self._over.is_set():
                self._end(message, int(code))

    def wait_for_all(self) -> None:
        """Returns when every process has come here: one may still fail, and the others should hear of it."""
        self._client.wait_at_barrier(TOGETHER, 24 * 3600 * 1000)

    def stop(self) -> None:
        """Ends the listening."""
        self._over.set()
        self._thread.join()

    def fail(self, error: BaseException) -> NoReturn:
        """Tells of ``error``, or of another process's failure that came before it, and ends this process."""
        self._over.set()
        code, message = _describe(error)
        try:
            self._client.key_value_set(FAILURE, f"{code}\nprocess {self._index}: {message}")
        except Exception as refused:
            if "ALREADY_EXISTS" in str(refused):  # Ours is then likely to follow from theirs.
                told, message = self._client.blocking_key_value_get(FAILURE, 1000).split("\n", 1)
                self._end(message, int(told))
        if not isinstance(error, cli.Failure | UserError | KeyboardInterrupt) and not _lost_a_peer(error):
            traceback.print_exception(error)
        self._end("" if isinstance(error, cli.Failure) else message, code)

    def _end(self, message: str, code: int) -> NoReturn:
        """Prints ``message`` and ends this process at once, whatever its threads wait for.

        The coordinator is the last to go: JAX would have the others abort.
        """
        if message:
            print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        with suppress(Exception):  # Some may be gone, the coordinator among them.
            self._client.key_value_set(f"{SEEN}/{self._index}", "")
            end = time.monotonic() + GRACE_SECONDS
            while self._index == 0 and time.monotonic() < end:
                if len(self._client.key_value_dir_get(SEEN)) == self._count:
                    time.sleep(LEAVING_SECONDS)
                    break
                time.sleep(0.1)
        sys.stdout.flush()
        os._exit(code)


def _describe(error: BaseException) -> tuple[int, str]:
    """Exit code and one line."""
    if isinstance(error, cli.Failure):
        return error.code, error.message
    if isinstance(error, SystemExit):
        return (error.code, "ended") if isinstance(error.code, int) else (1, str(error.code))
    if isinstance(error, KeyboardInterrupt):
        return cli.INTERRUPTED, "interrupted"
    if isinstance(error, UserError | PermissionError):
        return cli.USAGE_ERROR, str(error)
    if _lost_a_peer(error):
        return 1, f"lost another process ({str(error).splitlines()[0][:200]}); the same command goes on"
    return 1, f"{type(error).__name__}: {error}"


def _lost_a_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because one of its processes is gone."""
    words = ("Gloo", "NCCL", "Connection closed", "Connection reset", "coordination service", "Socket closed")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in words)
