"""Features of a sound that are computed fast, for a search over thousands of sounds.

They are those of the metrics in float32, with these savings: of the two finer spectrograms every second frame is left
out, and the window of the middle one is 2 % shorter, because transforms of its length are slow (1102 = 2 x 19 x 29).
One transform serves both wMFCC and SOT; wMFCC has a quarter of its frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.metrics import MSS_SCALES, SOT_HOP, SoundFeatures, cumulative_spectra, sot_spectra
from data_pipeline.audio.mfcc_distance import SCALE, mfcc_frames


class CoarseFeatures(SoundFeatures):
    """Features of a sound (C, T), whose distances are near those of ``SoundFeatures``. Raises as those do."""

    scales = (
        replace(MSS_SCALES[0], hop_length=2 * MSS_SCALES[0].hop_length),
        replace(MSS_SCALES[1], hop_length=2 * MSS_SCALES[1].hop_length, n_fft=1080),
        MSS_SCALES[2],
    )
    mfcc_scale = replace(SCALE, hop_length=2 * SOT_HOP)

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
        return [sot_spectra(channel) for channel in self._distinct]

    @cached_property
    def _mfccs(self) -> NDArray[np.floating]:
        return mfcc_frames(np.stack([self.mfcc_scale.of_spectra(spectra[::2]) for spectra in self._spectra]))

    @cached_property
    def _cumulative(self) -> NDArray[np.floating]:
        first, *others = self._spectra
        return cumulative_spectra(np.abs(np.mean([first, *others], axis=0) if others else first))
