"""Samples of a data set, one after another: draw a patch, render it, judge it, redraw until it is fit to be a row."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch_renderer import Attempt, Batch, NothingAcceptedError
from data_pipeline.mel import mel_spectrogram
from data_pipeline.quality import fault
from data_pipeline.row_codec import EncodedRow, RowEncoder
from data_pipeline.synths.protocol import Audio, Synth, SynthSettings

# The attempts of a whole batch are drawn at once, this many at a time: drawing is vectorised over rows.
ATTEMPTS_AT_ONCE = 4
# Why an attempt that has killed the synthesizer is not made again.
FORBIDDEN = "killed"
# No honest spec is refused this often in a row, a plugin that has quietly died is.
MAX_REFUSED_IN_A_ROW = 300


@dataclass(frozen=True)
class RenderSettings:
    """What decides a data set's content: (settings, sample index, attempt) gives a patch, and whether it is a row.

    ``min_loudness`` in LUFS, ``max_peak`` relative to full scale. ``verify_every`` counts renders between checks
    that the synthesizer holds the patch; the end of a batch is always checked.
    """

    synth: SynthSettings
    seed: int
    min_loudness: float
    max_peak: float
    verify_every: int

    def renderer(self, synth: Synth) -> RowRenderer:
        """What a worker renders the data set's batches with."""
        return RowRenderer(self, synth)


@dataclass(frozen=True)
class RenderedBatch:
    """Accepted rows in the order of the batch's indices, and how many renders were refused, by reason."""

    rows: tuple[EncodedRow, ...]
    refused: Counter[str] = field(default_factory=Counter)


class RowRenderer:
    """Renders a data set's batches with one synthesizer of this process.

    An attempt is (sample index, number of the attempt at it): with the seed, all that a patch depends on.
    """

    def __init__(self, settings: RenderSettings, synth: Synth) -> None:
        self._settings = settings
        self._synth = synth
        self._spec = settings.synth.spec
        self._encoder = RowEncoder()

    def render(self, batch: Batch, announce: Callable[[Attempt], None]) -> RenderedBatch:
        """Renders one accepted row for each index; ``announce`` hears of every attempt before it is made.

        Raises DriftError where the synthesizer does not hold what it was given, NothingAcceptedError where it
        refuses everything.
        """
        draw = self._drawer(batch.indices)
        render = self._verified_render(1 if batch.verify_each else self._settings.verify_every)
        refused: Counter[str] = Counter()
        rows = []
        for index in batch.indices:
            for attempt in range(MAX_REFUSED_IN_A_ROW):
                if (index, attempt) in batch.forbidden:
                    refused[FORBIDDEN] += 1
                    continue
                announce((index, attempt))
                params = draw(index, attempt)
                audio = render(params)
                reason = fault(audio, self._settings.min_loudness, self._settings.max_peak)
                if reason is None:
                    # The spectrogram sees the audio as rendered, before it is rounded to float16.
                    rows.append(self._encoder.encode(index, attempt, audio, mel_spectrogram(audio), params))
                    break
                refused[reason] += 1
            else:
                counts = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
                raise NothingAcceptedError(f"no patch was accepted for sample {index} (refused in its batch: {counts})")
        self._synth.verify()
        return RenderedBatch(tuple(rows), refused)

    def _verified_render(self, every: int) -> Callable[[NDArray[np.float32]], Audio]:
        """Renders a row (W,), with a check of the synthesizer after each ``every`` renders."""
        renders = itertools.count(1)

        def render(params: NDArray[np.float32]) -> Audio:
            audio = self._synth.render(self._spec.decode(params))
            if next(renders) % every == 0:
                self._synth.verify()
            return audio

        return render

    def _drawer(self, indices: Sequence[int]) -> Callable[[int, int], NDArray[np.float32]]:
        """``draw(index, attempt)`` for a batch's indices, giving the encoded row (W,)."""

        @lru_cache(maxsize=2)
        def block(number: int) -> dict[Attempt, NDArray[np.float32]]:
            first = number * ATTEMPTS_AT_ONCE
            pairs = [(index, first + step) for index in indices for step in range(ATTEMPTS_AT_ONCE)]
            rows = self._spec.sample(self._settings.seed, *zip(*pairs, strict=True))
            return dict(zip(pairs, rows, strict=True))

        return lambda index, attempt: block(attempt // ATTEMPTS_AT_ONCE)[index, attempt]
