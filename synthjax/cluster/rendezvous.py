"""The processes of a run find each other before JAX connects them.

JAX aborts a process that cannot join the others, and one whose port is taken. So every process first sends its number
to process 0, at the address where JAX will listen next. Process 0 answers all of them when they are complete.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import threading
import time
from contextlib import suppress

from data_pipeline.console.cli import UserError
from synthjax.cluster.launchers import ADDRESS, Cluster

GREETING = re.compile(r"synthjax process (?P<index>\d+) of (?P<count>\d+)\n")
COMPLETE, INCOMPLETE = "synthjax complete", "synthjax incomplete: "
# Seconds between two attempts to reach process 0, and that its answer may take on its way.
RETRY_SECONDS, ANSWER_SECONDS = 0.2, 2.0


def meet(cluster: Cluster, seconds: float) -> None:
    """Returns, on every process, when all processes of the run have reached process 0. All of them call it.

    Raises:
      UserError: if this takes longer than ``seconds``, or if process 0 cannot listen.
    """
    end = time.monotonic() + seconds
    if cluster.index == 0:
        server = _listen(cluster)
        threading.Thread(target=_gather, args=(server, cluster.count, end), name="rendezvous", daemon=True).start()
    reason = _reach(cluster, end)
    if reason:
        raise UserError(
            f"process {cluster.index} could not join the others at {cluster.coordinator} within {seconds:g} s: {reason}"
        )


def _listen(cluster: Cluster) -> socket.socket:
    """A socket that listens where JAX will: at the port on all addresses, or as JAX's own variable says."""
    own = ADDRESS.fullmatch(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", ""))
    host = (own["ipv6"] or own["name"]) if own else "::"
    port = int(own["port"]) if own else cluster.port
    both = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not both:
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=cluster.count)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {os.strerror(error.errno or 0)}: give the coordinator's address "
            "another port"
        ) from error


def _gather(server: socket.socket, count: int, end: float) -> None:
    """Process 0's part: collects the connections of all processes, itself among them, and answers them."""
    arrived: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector, server:
        selector.register(server, selectors.EVENT_READ)
        while len(arrived) < count and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is not server:
                    _read(connection, count, arrived, selector)
                    continue
                connection, _ = server.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
    answer = COMPLETE
    if len(arrived) < count:
        missing = [str(index) for index in range(count) if index not in arrived]
        answer = f"{INCOMPLETE}{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}"
    for connection in arrived.values():
        with suppress(OSError), connection:
            connection.sendall(f"{answer}\n".encode())


def _read(
    connection: socket.socket, count: int, arrived: dict[int, socket.socket], selector: selectors.BaseSelector
) -> None:
    """Enters a connection by the number that its process sends; drops it if it was closed, or if it is a stranger."""
    words = b""
    with suppress(OSError):
        words = connection.recv(100)
    greeting = GREETING.fullmatch(words.decode("ascii", "replace"))
    if greeting and int(greeting["count"]) == count:
        arrived[int(greeting["index"])] = connection
        return
    selector.unregister(connection)
    connection.close()
    for index in [index for index, known in arrived.items() if known is connection]:
        del arrived[index]


def _reach(cluster: Cluster, end: float) -> str:
    """Connects to process 0 until it answers that all are there. Returns "" or the reason why it does not."""
    reason = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((cluster.host, cluster.port), timeout=left) as connection:
                connection.sendall(f"synthjax process {cluster.index} of {cluster.count}\n".encode())
                connection.settimeout(max(0.0, end - time.monotonic()) + ANSWER_SECONDS)
                answer = connection.makefile(encoding="utf-8", errors="replace").readline(1000).strip()
            if answer == COMPLETE:
                return ""
            if answer.startswith(INCOMPLETE):
                return f"these processes did not come: {answer.removeprefix(INCOMPLETE)}"
            reason = "another program answers there" if answer else "process 0 ended the connection"
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(RETRY_SECONDS)
    return reason
