"""Renders the rows of a data set: draws a patch, renders it, and draws again until the sound is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.quality import fault
from data_pipeline.params.mixture import Held, Mixture, Prior
from data_pipeline.render.worker_messages import Attempt, Batch, NothingAcceptedError
from data_pipeline.shards.row_compression import EncodedRow, RenderedBatch, RowEncoder
from data_pipeline.synths.protocol import Audio, SoundingError, Synth, SynthSettings

# The attempts of a whole batch are drawn together, this many a row: drawing is vectorised over rows.
ATTEMPTS_AT_ONCE = 4
# The reason of an attempt that is left out because it has killed the synthesizer.
FORBIDDEN = "killed"
# The reason of an attempt that sounds before its note, and how often a sample may be refused for it: each time, the
# synthesizer is flushed for long and opened again.
SOUNDING = "sounding before the note"
MAX_SOUNDING = 10
# No honest spec is refused this often in a row. A plugin that no longer makes any sound is.
MAX_REFUSED_IN_A_ROW = 300


@dataclass(frozen=True)
class RenderSettings:
    """The settings that decide a data set's content.

    ``min_loudness`` is in LUFS, ``max_peak`` relative to full scale. ``verify_every`` is the number of renders between
    checks that the synthesizer holds the patch; it is also checked at the end of every batch. Patches are drawn from
    ``mixture``; without one, by the weights of the synthesizer's spec. With ``held``, all notes begin at 0 s and are
    held for so many seconds. Without ``store_audio`` shards have no audio.
    """

    synth: SynthSettings
    seed: int
    min_loudness: float
    max_peak: float
    verify_every: int
    mixture: Mixture | None = None
    store_audio: bool = True
    held: float = 0.0

    @property
    def prior(self) -> Prior:
        """The distribution that patches are drawn from."""
        prior = self.mixture or self.synth.spec
        return Held(prior, self.synth.spec, self.held) if self.held else prior

    @property
    def prior_hash(self) -> str | None:
        """The content hash of the mixture; None without one."""
        return self.mixture.content_hash if self.mixture else None

    def renderer(self, synth: Synth) -> RowRenderer:
        """The renderer of the data set's batches in a worker."""
        return RowRenderer(self, synth)


@dataclass(frozen=True, eq=False)
class AcceptedRow:
    """A row of a data set: its encoded patch (W,) and audio (2, 176400).

    ``index`` is the sample's number, ``attempt`` the number of patches refused before this one.
    """

    index: int
    attempt: int
    params: NDArray[np.float32]
    audio: Audio


@dataclass
class Refused:
    """The refused renders of a batch: how many by reason, and the attempts that sounded before their note."""

    counts: Counter[str] = field(default_factory=Counter)
    sounding: list[Attempt] = field(default_factory=list)


class RowRenderer:
    """Renders a data set's batches with one synthesizer in this process.

    An attempt is (sample index, number of the attempt at it). A patch depends on the seed, the prior
    and its attempt alone.
    """

    def __init__(self, settings: RenderSettings, synth: Synth) -> None:
        self._settings = settings
        self._synth = synth
        self._spec = settings.synth.spec
        self._encoder = RowEncoder()

    def render(self, batch: Batch, announce: Callable[[Attempt], None]) -> RenderedBatch:
        """Renders and compresses one accepted row for each index, as ``accepted`` does."""
        refused = Refused()
        rows = tuple(self._encoded(row) for row in self.accepted(batch, announce, refused))
        return RenderedBatch(rows, refused.counts, tuple(refused.sounding))

    def _encoded(self, row: AcceptedRow) -> EncodedRow:
        # The spectrogram is made of the audio as rendered, before it is rounded to float16.
        audio = row.audio if self._settings.store_audio else None
        return self._encoder.encode(row.index, row.attempt, audio, mel_spectrogram(row.audio), row.params)

    def accepted(self, batch: Batch, announce: Callable[[Attempt], None], refused: Refused) -> Iterator[AcceptedRow]:
        """Yields one accepted row for each index; calls ``announce`` before every attempt, and adds to ``refused``.

        Raises DriftError where the synthesizer does not hold the patch it was given, and NothingAcceptedError where
        every patch is refused.
        """
        draw = self._drawer(batch.indices)
        verify_every = 1 if batch.verify_each else self._settings.verify_every
        renders = count(1)
        for index in batch.indices:
            for attempt in range(MAX_REFUSED_IN_A_ROW):
                if (index, attempt) in batch.forbidden:
                    refused.counts[FORBIDDEN] += 1
                    continue
                announce((index, attempt))
                params = draw(index, attempt)
                audio, reason = self._render(params)
                if next(renders) % verify_every == 0:
                    self._synth.verify()
                if reason is None:
                    yield AcceptedRow(index, attempt, params, audio)
                    break
                refused.counts[reason] += 1
                if reason == SOUNDING:
                    refused.sounding.append((index, attempt))
                    if sum(sample == index for sample, _ in refused.sounding) == MAX_SOUNDING:
                        raise _nothing_accepted(index, refused.counts)
            else:
                raise _nothing_accepted(index, refused.counts)
        self._synth.verify()

    def _render(self, params: NDArray[np.float32]) -> tuple[Audio, str | None]:
        """The audio of an encoded row (W,), and the reason to refuse it, if there is one."""
        try:
            audio = self._synth.render(self._spec.decode(params))
        except SoundingError as error:
            return error.audio, SOUNDING
        return audio, fault(audio, self._settings.min_loudness, self._settings.max_peak)

    def _drawer(self, indices: Sequence[int]) -> Callable[[int, int], NDArray[np.float32]]:
        """Returns ``draw(index, attempt)`` for the indices of a batch; it returns the encoded row (W,)."""

        @lru_cache(maxsize=2)
        def block(number: int) -> dict[Attempt, NDArray[np.float32]]:
            first = number * ATTEMPTS_AT_ONCE
            pairs = [(index, first + step) for index in indices for step in range(ATTEMPTS_AT_ONCE)]
            rows = self._settings.prior.sample(self._settings.seed, *zip(*pairs, strict=True))
            return dict(zip(pairs, rows, strict=True))

        return lambda index, attempt: block(attempt // ATTEMPTS_AT_ONCE)[index, attempt]


def _nothing_accepted(index: int, refused: Counter[str]) -> NothingAcceptedError:
    counts = ", ".join(f"{times} {reason}" for reason, times in refused.most_common())
    return NothingAcceptedError(f"no patch was accepted for sample {index} (refused in its batch: {counts})")
