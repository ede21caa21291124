"""A render worker: a process that holds one synthesizer and renders the batches it receives over a pipe.

``worker_process`` starts it as ``python -m data_pipeline.render.worker DESCRIPTOR``; DESCRIPTOR is the inherited end of
the pipe. ``worker_messages`` lists what the pipe carries. The worker ends when the pipe closes or a batch fails. It
imports little, so that it starts fast: unpickling its settings imports the renderer.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data_pipeline.audio.contract import SECONDS, VELOCITY
from data_pipeline.console.cli import UserError
from data_pipeline.render import worker_messages as messages
from data_pipeline.synths.choice import open_synth
from data_pipeline.synths.protocol import Audio, DriftError, SoundingError, SynthSettings

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>.


class ReopenedSynth:
    """A ``Synth`` that is opened again where it sounds before a note, so that no render depends on those before it.

    ``render`` raises SoundingError only where the patch sounds before its note in a fresh instance, too.
    """

    def __init__(self, settings: SynthSettings) -> None:
        self._settings = settings
        self._synth = open_synth(settings)
        self.name, self.version = self._synth.name, self._synth.version

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders as ``Synth.render`` does, a second time in a fresh instance if need be."""
        with suppress(SoundingError):
            return self._synth.render(values, base=base, velocity=velocity, seconds=seconds)
        self._synth = open_synth(self._settings)
        gc.collect()  # A plugin and its parameter objects refer to each other.
        return self._synth.render(values, base=base, velocity=velocity, seconds=seconds)

    def verify(self) -> None:
        """Raises DriftError as ``Synth.verify`` does."""
        self._synth.verify()

    def preset(self) -> bytes | None:
        """The patch as ``Synth.preset`` gives it."""
        return self._synth.preset()


def main(descriptor: int) -> None:
    """Serves the pipe until it closes or a batch fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides.
    if sys.platform == "linux":  # A worker that hangs in a plugin must not outlive a killed parent.
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except DriftError as error:
        connection.send(messages.Failed(messages.DRIFT, str(error)))
    except messages.NothingAcceptedError as error:
        connection.send(messages.Failed(messages.NOTHING_ACCEPTED, str(error)))
    except UserError as error:
        connection.send(messages.Failed(messages.UNUSABLE, str(error)))
    except Exception as error:  # A synthesizer may raise anything, often for one patch alone.
        traceback.print_exc()
        connection.send(messages.Failed(messages.ERROR, " ".join(f"{type(error).__name__}: {error}".split())))


def _serve(connection: Connection) -> None:
    settings = connection.recv()
    synth = ReopenedSynth(settings.synth)
    renderer = settings.renderer(synth)
    connection.send(messages.Ready(synth.name, synth.version))
    while True:
        try:
            batch = connection.recv()
        except (EOFError, ConnectionResetError):  # The parent is gone, or has no more batches.
            return
        rendered = renderer.render(batch, lambda attempt: connection.send(messages.Announced(attempt)))
        connection.send(messages.Finished(rendered, _peak_memory()))


def _peak_memory() -> int:
    """The largest memory of this process so far, in bytes."""
    if sys.platform == "linux":
        # The peak of getrusage would include the memory of the parent before it started this program.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(int(sys.argv[1]))
