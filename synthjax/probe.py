"""What a model in training sounds like: a few sounds of the validation split, rendered beside training.

Whatever takes time (rendering, spectrograms, pictures) is done by one worker process that works only now and then: what
it takes of the processors, the step loses, whatever its priority. A thread of the training process waits for it and
writes down what comes back, so that training keeps its cores and Python's lock, and a synthesizer that crashes or hangs
is the worker's affair. The worker imports this module: no JAX here.

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
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio_metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.batch_renderer import Attempt
from data_pipeline.cli import UserError
from data_pipeline.cores import usable_cores
from data_pipeline.mel import mel_spectrogram
from data_pipeline.param_spec import ParamSpec
from data_pipeline.patch_renderer import PatchBatch, PatchBatchRenderer
from data_pipeline.synths.choice import synth_for, why_no_renderer
from data_pipeline.synths.protocol import SAMPLE_RATE, Synth, SynthSettings
from data_pipeline.worker_pool import Supervision, WorkerPool
from synthjax import plots
from synthjax.writers import Writers

LOWEST_PRIORITY = 19
# Of all processors' time, what the worker takes on average: a machine of two cores waits minutes for eight sounds, a
# host of accelerators seconds.
PROCESSOR_SHARE = 0.02
# A worker that rests, and has the lowest priority, may take long over a sound.
SUPERVISION = Supervision(render_seconds=600.0)
# How long the end of training waits for a probe under way.
GRACE_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Heard:
    """A rendered prediction for target ``sound``: audio (2, T) as data sets store it, its MSS in dB to the target, and
    the spectrograms of both as a picture.
    """

    sound: int
    audio: NDArray[np.float16]
    mss: float
    picture: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ProbeSettings:
    """What the worker needs: the synthesizer, the targets (S, 2, T), and its share of all processors' time."""

    synth: SynthSettings
    targets: NDArray[np.floating]
    share: float

    def renderer(self, synth: Synth) -> ProbeRenderer:
        """Called by the worker, which gives way to training from here on."""
        os.nice(LOWEST_PRIORITY)
        return ProbeRenderer(PatchBatchRenderer(self.synth.spec, synth), self.targets, Pace(self.share))


class Pace:
    """Lets this process work no more than a share of all processors' time, by resting after work."""

    def __init__(self, share: float) -> None:
        self._seconds_per_worked = 1.0 / (share * usable_cores())
        self._since = time.process_time()

    def rest(self) -> None:
        """Makes up for what was worked since the last rest."""
        worked = time.process_time() - self._since
        time.sleep(max(worked * (self._seconds_per_worked - 1.0), 0.0))
        self._since = time.process_time()


class ProbeRenderer:
    """Renders patches and compares each with its target; a patch of index i is for target i modulo S."""

    def __init__(self, patches: PatchBatchRenderer, targets: NDArray[np.floating], pace: Pace) -> None:
        self._patches, self._pace = patches, pace
        sounds = targets.astype(np.float32)
        self._targets = [(mss_spectrograms(sound), mel_spectrogram(sound)) for sound in sounds]

    def render(self, batch: PatchBatch, announce: Callable[[Attempt], None]) -> tuple[Heard, ...]:
        """Those of the batch that can be rendered."""
        self._pace.rest()
        rendered = self._patches.render(batch, announce)
        heard = []
        for patch in rendered:
            self._pace.rest()
            if patch.audio is not None:
                heard.append(self._compare(patch.key, patch.audio))
        return tuple(heard)

    def _compare(self, index: int, audio: NDArray[np.float32]) -> Heard:
        sound = index % len(self._targets)
        target_spectrograms, target_mel = self._targets[sound]
        stored = audio.astype(np.float16)
        heard = stored.astype(np.float32)
        mss = spectrogram_distance(target_spectrograms, mss_spectrograms(heard))
        mels = {"target": target_mel, f"prediction, MSS {mss:.1f} dB": mel_spectrogram(heard)}
        return Heard(sound, stored, mss, plots.spectrograms(mels))


class Listener(Protocol):
    """Hears rows: a context manager, entered and used in one thread."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def hear(self, rows: NDArray[np.floating]) -> Sequence[Heard]:
        """Renders one row (S, W) for each target and returns those that could be, in order. May raise anything."""
        ...


class WorkerListener:
    """A listener with a worker process, which on Linux dies with the thread that started it."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._indices = count()  # They never recur: a row's failures must not be held against later ones.

    def __enter__(self) -> Self:
        self._pool: WorkerPool[PatchBatch, tuple[Heard, ...]] = WorkerPool(self._settings, 1, SUPERVISION)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def hear(self, rows: NDArray[np.floating]) -> list[Heard]:
        """Raises UserError where the synthesizer does not work."""
        batches = (PatchBatch((next(self._indices),), rows=(row,)) for row in rows.astype(np.float64))
        heard = [one for outcome in self._pool.run(batches) for one in outcome.batch]
        return sorted(heard, key=lambda one: one.sound)


class Probe:
    """Has rows heard by a thread of its own, and writes audio, pictures and ``probe/mss`` when they are done.

    A validation that comes before the last one's rows are done goes unheard. A listener that fails is told in one
    line, and the probe is off from then on: nothing that happens here is an error of the run.
    """

    def __init__(
        self, listener: Listener, targets: NDArray[np.floating], writers: Writers, say: Callable[[str], None]
    ) -> None:
        self._listener, self._targets, self._writers, self._say = listener, targets, writers, say
        self._orders: queue.SimpleQueue[tuple[int, NDArray[np.floating]] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._said_skipped = self._wrote_targets = self._abandoned = False
        self._thread = threading.Thread(target=self._listen, name="validation probe", daemon=True)
        self._thread.start()

    def submit(self, step: int, rows: NDArray[np.floating]) -> None:
        """Has the first S of ``rows`` heard, one for each target, unless those before are still under way."""
        if self._idle.is_set():
            self._idle.clear()
            self._orders.put((step, rows[: len(self._targets)]))
        elif self._thread.is_alive() and not self._said_skipped:  # Else it has said why it is off.
            self._say(f"no validation probe at step {step}, as the one before is still under way; not told again")
            self._said_skipped = True

    def close(self) -> None:
        """Waits for what is under way, but not long; the worker ends with the thread, or with the process."""
        self._orders.put(None)
        self._thread.join(GRACE_SECONDS)
        self._abandoned = True

    def _listen(self) -> None:
        try:
            with self._listener as listener:
                while order := self._orders.get():
                    step, rows = order
                    self._write(step, listener.hear(rows))
                    self._idle.set()
        except Exception as error:  # Whatever it is, it must not end training.
            if not self._abandoned:
                self._say(f"the validation probe is off: {' '.join(str(error).split())}")

    def _write(self, step: int, heard: Sequence[Heard]) -> None:
        if self._abandoned:  # The writers are closed.
            return
        if not self._wrote_targets:
            for sound, audio in enumerate(self._targets):
                self._writers.audio(step, f"probe/{sound}/target", audio, SAMPLE_RATE)
            self._wrote_targets = True
        for one in heard:
            self._writers.audio(step, f"probe/{one.sound}/prediction", one.audio, SAMPLE_RATE)
            self._writers.image(step, f"probe/{one.sound}/spectrograms", one.picture)
        scalars = {"probe/not_rendered": float(len(self._targets) - len(heard))}
        if heard:
            scalars["probe/mss"] = float(np.mean([one.mss for one in heard]))
        self._writers.timings(step, scalars)


def start_probe(
    spec: ParamSpec, targets: NDArray[np.floating], writers: Writers, say: Callable[[str], None]
) -> Probe | None:
    """A probe with the spec's synthesizer and the targets (S, 2, T); None, and one line, where it is not at hand."""
    try:
        synth = synth_for(spec)
        missing = why_no_renderer(synth, "the environment variable SURGE_XT_PLUGIN")
    except UserError:  # Which tells of flags that training has not.
        missing = f"spec {spec.name} is neither the built-in synthesizer's nor Surge XT's"
    if missing:
        say(f"no validation probe: {missing}")
        return None
    return Probe(WorkerListener(ProbeSettings(synth, targets, PROCESSOR_SHARE)), targets, writers, say)
