"""Features of a sound that are computed fast, for a search over thousands of sounds.

They are those of the metrics in float32, with these savings: every second frame of the two finer spectrograms and of
SOT is left out, and the window of the middle spectrogram is 2 % shorter, because transforms of its length are slow
(1102 = 2 x 19 x 29). wMFCC uses the transforms of SOT, which are a quarter as many as its own.

Of each two frames SOT keeps one. Which one was drawn at random, and is the same for every sound. Every second frame
would be one in 40 ms: a sound that changes 25 times a second would then seem not to change, and the search found
patches that were near their target in these frames alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.metrics import MSS_SCALES, SOT_HOP, SoundFeatures, cumulative_spectra, sot_frames, sot_spectra
from data_pipeline.audio.mfcc_distance import SCALE, mfcc_frames


class CoarseFeatures(SoundFeatures):
    """Features of a sound (C, T), whose distances are near those of ``SoundFeatures``. Raises as those do."""

    scales = (
        replace(MSS_SCALES[0], hop_length=2 * MSS_SCALES[0].hop_length),
        replace(MSS_SCALES[1], hop_length=2 * MSS_SCALES[1].hop_length, n_fft=1080),
        MSS_SCALES[2],
    )
    sot_hop = 2 * SOT_HOP
    mfcc_scale = replace(SCALE, hop_length=sot_hop)

    def __init__(self, audio: NDArray[np.floating]) -> None:
        super().__init__(audio, np.float32)

    def computed(self) -> Self:
        """As in ``SoundFeatures``."""
        super().computed()
        del self._spectra
        return self

    @cached_property
    def _spectra(self) -> list[NDArray[np.complexfloating]]:
        """The spectra of every channel: the windows of wMFCC and SOT are the same."""
        frames = (sot_frames(channel) for channel in self._distinct)
        return [sot_spectra(every[_kept(len(every))]) for every in frames]

    @cached_property
    def _mfccs(self) -> NDArray[np.floating]:
        return mfcc_frames(np.stack([self.mfcc_scale.of_spectra(spectra) for spectra in self._spectra]))

    @cached_property
    def _cumulative(self) -> NDArray[np.floating]:
        first, *others = self._spectra
        return cumulative_spectra(np.abs(np.mean([first, *others], axis=0) if others else first))


@cache
def _kept(frames: int) -> NDArray[np.int64]:
    """The numbers of half of so many frames: one of each two, and the last of an odd number."""
    pairs = 2 * np.arange((frames + 1) // 2)
    return np.minimum(pairs + np.random.default_rng(0).integers(2, size=len(pairs)), frames - 1)
