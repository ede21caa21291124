"""One program on one process or many (JAX's multi-controller runtime): joining, comparing settings, ending together.

If a process dies, JAX ends the others. If a process only raises an error, the others would wait for it in a collective
operation. So it sends its message to the coordinator, and a thread in every other process waits for such a message.
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

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from synthjax.cluster import launchers, rendezvous
from synthjax.cluster.launchers import Cluster

FAILURE, SEEN, TOGETHER = "synthjax/failure", "synthjax/seen", "synthjax/together"
# Seconds that one request for a failure message stays open; that the coordinator waits until all others have read the
# message; and that it then waits until they have ended.
POLL_SECONDS, GRACE_SECONDS, LEAVING_SECONDS = 1.0, 10.0, 1.0


def define() -> None:
    """Defines the flags that ``joined`` reads."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0; not needed for processes that Slurm, MPI or Kubernetes start.",
    )
    flags.DEFINE_integer(
        "process_count", None, "Number of processes of the run; default: as the launcher says, else 1.", lower_bound=1
    )
    flags.DEFINE_integer("process_index", None, "Number of this process, from 0.", lower_bound=0)
    flags.DEFINE_integer("heartbeat_seconds", 100, "The run ends if a process is silent for so long.", lower_bound=1)
    flags.DEFINE_integer("join_seconds", 300, "Seconds to wait for the other processes at the start.", lower_bound=1)


@contextmanager
def joined() -> Generator[None, None, None]:
    """Joins the other processes of the run, if there are any. Enter it before anything uses a device.

    An error inside ends every process, with its message. Leaving waits for all processes.

    Raises:
      UserError: if flags or environment describe the processes wrongly, or the other processes do not join in time.
    """
    if not _initialise():
        require_devices()
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
    """Whether this is process 0, which writes logs and prints to the terminal."""
    return jax.process_index() == 0


def key_value_store() -> Any:
    """The coordinator's key-value store, for short texts between processes; None if there is one process."""
    # JAX has no public function for it; Orbax imports the same private module.
    from jax._src import distributed

    return distributed.global_state.client


def require_devices() -> None:
    """Makes JAX find its devices, before the command needs them.

    Raises:
      UserError: if it cannot, for example because JAX_PLATFORMS names a platform that this machine does not have.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that one of its own platforms is there.
        wanted = os.environ.get("JAX_PLATFORMS")
        if not wanted:
            raise UserError(f"JAX finds no devices: {error}") from error
        jax.config.update("jax_platforms", None)
        found = sorted({device.platform for device in jax.devices()})
        reason = f" ({error})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={wanted}: this machine has {', '.join(found)}{reason}: set JAX_PLATFORMS to a platform "
            "that is there, or unset it"
        ) from error


def main_says(flag: bool) -> bool:
    """Process 0's ``flag``, on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def from_main(arrays: Any) -> Any:
    """Process 0's tree of arrays, on every process; the shapes are the same everywhere."""
    return arrays if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(arrays)


def require_same(values: dict[str, Any], remedy: str) -> None:
    """Compares named values, as text, between all processes.

    Raises:
      UserError: on every process, with the names of the values that differ, and ``remedy``.
    """
    if jax.process_count() == 1:
        return
    mine = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    everyone = multihost_utils.process_allgather(mine)
    differing = [name for name, column in zip(values, everyone.T, strict=True) if len(set(column.tolist())) > 1]
    if differing:
        raise UserError(f"the processes disagree about {', '.join(differing)}: {remedy}")


def _initialise() -> bool:
    """Joins by flags, environment variables or TPU runtime; returns whether there are several processes."""
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
    elif f.process_count == 1 or not launchers.on_tpu(os.environ):
        return False
    if cluster is not None:  # Waiting looks like standing still: print the facts before.
        print(
            f"process {cluster.index} of {cluster.count} joins the others at {cluster.coordinator}, "
            f"waiting {f.join_seconds} s at most; to run as one process alone: --process_count=1",
            file=sys.stderr,
        )
        _reach_without_proxy(cluster.host)
        rendezvous.meet(cluster, f.join_seconds)
    try:
        jax.distributed.initialize(**limits)
        require_devices()
    except UserError:
        cli.exit_without_threads()
        raise
    except (RuntimeError, ValueError) as error:
        where = f" at {cluster.coordinator}" if cluster else ""
        cli.exit_without_threads()
        raise UserError(f"the processes of this run could not join{where}: {error}") from error
    return jax.process_count() > 1


def _reach_without_proxy(host: str) -> None:
    """Makes gRPC reach ``host`` directly: a proxy of http_proxy or https_proxy does not know the cluster's hosts."""
    if not any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy")):
        return  # JAX warns of every variable about proxies, also of no_grpc_proxy.
    # gRPC reads no_proxy only if no_grpc_proxy is missing.
    excluded = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")  # noqa: SIM112 - gRPC's spelling.
    os.environ["no_grpc_proxy"] = f"{excluded},{host}" if excluded else host  # noqa: SIM112


def _cluster() -> Cluster | None:
    f = flags.FLAGS
    count, index, coordinator = f.process_count, f.process_index, f.coordinator
    if count is None:
        if coordinator or index is not None:
            raise UserError("--coordinator and --process_index need --process_count")
        return launchers.find(os.environ)
    if count == 1:
        return None
    if not coordinator or index is None:
        raise UserError("--process_count above 1 needs --coordinator=HOST:PORT of process 0, and --process_index")
    return Cluster(coordinator, count, index)


class _Watch:
    """Waits in a thread for the failure of another process, and sends this process's failure to the others."""

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
                code, message = "1", "lost process 0, which coordinates the run; the same command goes on"
            if not self._over.is_set():
                self._end(message, int(code))

    def wait_for_all(self) -> None:
        """Returns when every process has called it: until then one may fail, and the others must end too."""
        self._client.wait_at_barrier(TOGETHER, 24 * 3600 * 1000)

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()

    def fail(self, error: BaseException) -> NoReturn:
        """Sends ``error`` to the others and ends this process; ends it with an earlier failure if there was one."""
        self._over.set()
        code, message = _describe(error)
        try:
            self._client.key_value_set(FAILURE, f"{code}\nprocess {self._index}: {message}")
        except Exception as refused:
            if "ALREADY_EXISTS" in str(refused):  # The other failure came first and probably caused this one.
                first_code, message = self._client.blocking_key_value_get(FAILURE, 1000).split("\n", 1)
                self._end(message, int(first_code))
        if not isinstance(error, cli.Failure | UserError | KeyboardInterrupt) and not _lost_a_peer(error):
            traceback.print_exception(error)
        self._end("" if isinstance(error, cli.Failure) else message, code)

    def _end(self, message: str, code: int) -> NoReturn:
        """Prints ``message`` and ends this process at once, without waiting for its threads.

        The coordinator ends last: JAX would abort the others if it ended before them.
        """
        if message:
            print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        with suppress(Exception):  # Other processes, even the coordinator, may have ended already.
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
    """Exit code and message of one line for an error."""
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
    """Whether a collective operation failed because another process ended."""
    words = ("Gloo", "NCCL", "Connection closed", "Connection reset", "coordination service", "Socket closed")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in words)
