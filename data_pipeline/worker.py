"""A render worker: one process with one synthesizer, told over a pipe what to render.

Started by ``worker_process`` as ``python -m data_pipeline.worker DESCRIPTOR``, DESCRIPTOR being the inherited end of
the pipe. It receives ``RendererSettings`` once and then ``Batch`` after ``Batch`` until the pipe closes, and sends the
messages of ``worker_messages``. Being a program of its own it imports only what the renderer needs, whoever starts it:
the settings bring the renderer's module with them.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from data_pipeline.batch_renderer import Batch, NothingAcceptedError
from data_pipeline.cli import UserError
from data_pipeline.synths.protocol import DriftError, open_synth
from data_pipeline.worker_messages import DRIFT, ERROR, NOTHING_ACCEPTED, UNUSABLE, Announced, Failed, Finished, Ready


def main(descriptor: int) -> None:
    """Serves the pipe until it closes or a batch fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    _die_with_parent()
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except DriftError as error:
        connection.send(Failed(DRIFT, str(error)))
    except NothingAcceptedError as error:
        connection.send(Failed(NOTHING_ACCEPTED, str(error)))
    except UserError as error:
        connection.send(Failed(UNUSABLE, str(error)))
    except Exception as error:  # A synthesizer may raise anything, and often for one patch alone.
        traceback.print_exc()
        connection.send(Failed(ERROR, " ".join(f"{type(error).__name__}: {error}".split())))


def _serve(connection: Connection) -> None:
    settings = connection.recv()
    synth = open_synth(settings.synth)
    renderer = settings.renderer(synth)
    connection.send(Ready(synth.name, synth.version))
    while (batch := _next_batch(connection)) is not None:
        rendered = renderer.render(batch, lambda attempt: connection.send(Announced(attempt)))
        connection.send(Finished(rendered, _peak_memory()))


def _next_batch(connection: Connection) -> Batch | None:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None  # The parent is gone, or wants no more.


def _peak_memory() -> int:
    if sys.platform == "linux":
        # What getrusage calls the peak includes that of the parent before it started this program.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _die_with_parent() -> None:
    """A worker that hangs in a plugin would outlive a killed parent; elsewhere than on Linux it still may."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
