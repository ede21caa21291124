"""The validation probe: a few predictions of the validation split, rendered and compared beside training.

One worker process renders, computes spectrograms and draws pictures. It rests most of the time, because its processor
time slows the steps down, whatever its priority. A thread of the training process waits for the worker and writes its
results. So training keeps its cores and Python's lock, and a synthesizer that crashes or hangs harms the worker only.
The worker imports this module, which therefore must not import JAX.

Shapes: S sounds, W row width, T = 176400 samples.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.console.cli import UserError
from data_pipeline.console.machine import usable_cores
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchBatch, PatchBatchRenderer
from data_pipeline.render.worker_messages import Attempt
from data_pipeline.render.worker_pool import Supervision, WorkerPool
from data_pipeline.synths.choice import synth_for, why_no_renderer
from data_pipeline.synths.protocol import Synth, SynthSettings
from synthjax.training import plots
from synthjax.training.writers import Writers

LOWEST_PRIORITY = 19
# The worker's average share of all processors' time. Eight sounds take minutes on two cores, seconds on a host of
# accelerators.
PROCESSOR_SHARE = 0.02
# The limit for one sound is generous: the worker rests and has the lowest priority.
SUPERVISION = Supervision(render_seconds=600.0)
# Seconds that the end of training waits for the sounds under way.
GRACE_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Rendered:
    """A rendered prediction.

    Attributes:
      sound: the number of its target.
      audio: (2, T) as data sets store it.
      mss: its distance to the target in dB, see ``data_pipeline.audio.metrics``.
      picture: the spectrograms of target and prediction.
    """

    sound: int
    audio: NDArray[np.float16]
    mss: float
    picture: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ProbeSettings:
    """Settings of the worker: the synthesizer, the targets (S, 2, T), and its share of all processors' time."""

    synth: SynthSettings
    targets: NDArray[np.floating]
    share: float

    def renderer(self, synth: Synth) -> ProbeRenderer:
        """The renderer, made in the worker, which from here on has the lowest priority."""
        os.nice(LOWEST_PRIORITY)
        return ProbeRenderer(PatchBatchRenderer(self.synth.spec, synth), self.targets, Pace(self.share))


class Pace:
    """Keeps this process below a share of all processors' time, by resting after work."""

    def __init__(self, share: float) -> None:
        self._seconds_per_worked = 1.0 / (share * usable_cores())
        self._since = time.process_time()

    def rest(self) -> None:
        """Sleeps in proportion to the processor time since the last rest."""
        worked = time.process_time() - self._since
        time.sleep(max(worked * (self._seconds_per_worked - 1.0), 0.0))
        self._since = time.process_time()


class ProbeRenderer:
    """Renders patches and compares each with its target: patch number i with target i modulo S."""

    def __init__(self, patches: PatchBatchRenderer, targets: NDArray[np.floating], pace: Pace) -> None:
        self._patches, self._pace = patches, pace
        sounds = targets.astype(np.float32)
        self._targets = [(mss_spectrograms(sound), mel_spectrogram(sound)) for sound in sounds]

    def render(self, batch: PatchBatch, announce: Callable[[Attempt], None]) -> tuple[Rendered, ...]:
        """The patches of the batch that could be rendered."""
        self._pace.rest()
        rendered = self._patches.render(batch, announce)
        compared = []
        for patch in rendered:
            self._pace.rest()
            if patch.audio is not None:
                compared.append(self._compare(patch.key, patch.audio))
        return tuple(compared)

    def _compare(self, index: int, audio: NDArray[np.float32]) -> Rendered:
        sound = index % len(self._targets)
        target_spectrograms, target_mel = self._targets[sound]
        stored = audio.astype(np.float16)
        prediction = stored.astype(np.float32)
        mss = spectrogram_distance(target_spectrograms, mss_spectrograms(prediction))
        mels = {"target": target_mel, f"prediction, MSS {mss:.1f} dB": mel_spectrogram(prediction)}
        return Rendered(sound, stored, mss, plots.spectrograms(mels))


class ProbeWorker:
    """The worker process. Enter and use it in one thread: on Linux the worker ends with that thread."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._indices = count()  # Never reused: the pool counts the failures of an index.

    def __enter__(self) -> Self:
        self._pool: WorkerPool[PatchBatch, tuple[Rendered, ...]] = WorkerPool(self._settings, 1, SUPERVISION)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def render(self, rows: NDArray[np.floating]) -> list[Rendered]:
        """Renders rows (S, W), one for each target; returns those that could be rendered, in the order of targets.

        Raises:
          UserError: if the synthesizer does not work.
        """
        batches = (PatchBatch((next(self._indices),), rows=(row,)) for row in rows.astype(np.float64))
        rendered = [one for outcome in self._pool.run(batches) for one in outcome.batch]
        return sorted(rendered, key=lambda one: one.sound)


class Probe:
    """Has rows rendered, in a thread of its own, and writes audio, pictures and ``probe/mss``.

    If rows of an earlier validation are still being rendered, new ones are skipped. No error of the probe ends the run:
    it prints one line and turns the probe off.
    """

    def __init__(
        self, worker: ProbeWorker, targets: NDArray[np.floating], writers: Writers, say: Callable[[str], None]
    ) -> None:
        self._worker, self._targets, self._writers, self._say = worker, targets, writers, say
        self._orders: queue.SimpleQueue[tuple[int, NDArray[np.floating]] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._said_skipped = self._wrote_targets = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="validation probe", daemon=True)
        self._thread.start()

    def submit(self, step: int, rows: NDArray[np.floating]) -> None:
        """Has the first S of ``rows`` rendered, one for each target, unless earlier ones are still being rendered."""
        if self._idle.is_set():
            self._idle.clear()
            self._orders.put((step, rows[: len(self._targets)]))
        elif self._thread.is_alive() and not self._said_skipped:  # A dead thread has printed why.
            self._say(f"no validation probe at step {step}: the one before still renders (this line is not repeated)")
            self._said_skipped = True

    def close(self) -> None:
        """Waits briefly for the rows under way. The worker ends with the thread, or with the process."""
        self._orders.put(None)
        self._thread.join(GRACE_SECONDS)
        self._abandoned = True

    def _run(self) -> None:
        try:
            with self._worker as worker:
                while order := self._orders.get():
                    step, rows = order
                    self._write(step, worker.render(rows))
                    self._idle.set()
        except Exception as error:  # No error may end training.
            if not self._abandoned:
                self._say(f"the validation probe is off: {' '.join(str(error).split())}")

    def _write(self, step: int, rendered: Sequence[Rendered]) -> None:
        if self._abandoned:  # The writers are closed.
            return
        if not self._wrote_targets:
            for sound, audio in enumerate(self._targets):
                self._writers.audio(step, f"probe/{sound}/target", audio, SAMPLE_RATE)
            self._wrote_targets = True
        for one in rendered:
            self._writers.audio(step, f"probe/{one.sound}/prediction", one.audio, SAMPLE_RATE)
            self._writers.image(step, f"probe/{one.sound}/spectrograms", one.picture)
        scalars = {"probe/not_rendered": float(len(self._targets) - len(rendered))}
        if rendered:
            scalars["probe/mss"] = float(np.mean([one.mss for one in rendered]))
        self._writers.timings(step, scalars)


def start_probe(
    spec: ParamSpec, targets: NDArray[np.floating], writers: Writers, say: Callable[[str], None]
) -> Probe | None:
    """Starts a probe with the spec's synthesizer and the targets (S, 2, T).

    Returns None, and prints why, if the synthesizer is not installed.
    """
    try:
        synth = synth_for(spec)
        missing = why_no_renderer(synth, "the environment variable SURGE_XT_PLUGIN")
    except UserError:  # Its message names flags that training does not have.
        missing = f"no synthesizer here knows spec {spec.name}"
    if missing:
        say(f"no validation probe: {missing}")
        return None
    return Probe(ProbeWorker(ProbeSettings(synth, targets, PROCESSOR_SHARE)), targets, writers, say)
