"""Distances between two sounds: MSS, wMFCC, SOT and RMS.

The metrics of "Audio synthesizer inversion in symmetric parameter spaces with approximately equivariant flow matching"
(Hayes, Saitis, Fazekas, ISMIR 2025), between sounds of equal shape at 44.1 kHz:

- ``mss``, multi-scale spectral distance in dB: the mean over three scales of the mean absolute difference between mel
  spectrograms in decibels, each relative to its own sound's maximum, so that volume does not count;
- ``wmfcc``: see ``mfcc_distance``;
- ``sot``, spectral optimal transport: how far energy must be moved along the frequency axis to turn the mono magnitude
  spectrum of one sound into that of the other, as a part of the whole axis (0 to 1); the mean over frames;
- ``rms``: the cosine similarity of the sounds' mono loudness envelopes (0 to 1, higher is better).

Every metric of finite sounds is finite. Two silent sounds give 0, 0, 0 and 1. If only one is silent, its MSS
spectrogram is 0 dB everywhere, its MFCC frames are those of -100 dB, its SOT spectrum is zero and RMS is 0. SOT and RMS
take the mean of the channels, which is silent where the channels cancel.

Shapes: C channels, T samples, F frames, M mel bands, B frequency bins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from data_pipeline.audio.mfcc_distance import SCALE as MFCC_SCALE
from data_pipeline.audio.mfcc_distance import mfcc_frames, wmfcc_distance
from data_pipeline.audio.spectrogram import MelAnalysis, centred_frames, is_mono, raised_cosine, relative_decibels

METRICS = ("mss", "wmfcc", "sot", "rms")
HIGHER_IS_BETTER = frozenset({"rms"})

# Windows of 10, 25 and 100 ms, hops of 5, 10 and 50 ms.
MSS_SCALES = (
    MelAnalysis(n_fft=441, hop_length=220, n_mels=32, window_mean=0.5),
    MelAnalysis(n_fft=1102, hop_length=441, n_mels=64, window_mean=0.5),
    MelAnalysis(n_fft=4410, hop_length=2205, n_mels=128, window_mean=0.5),
)
# SOT: windows of 50 ms every 20 ms. Magnitudes are divided by their sum, but not by less than the least sum.
SOT_WINDOW = raised_cosine(2205, 0.5)
SOT_HOP = 882
SOT_LEAST_SUM = 1e-6
# RMS: windows of 50 ms every 25 ms.
RMS_LENGTH = 2205
RMS_HOP = 1102

Key = TypeVar("Key")
Spectrograms = Sequence[NDArray[np.floating]]


class SoundFeatures:
    """The spectrograms, MFCCs, spectra and envelope that the metrics compare, each computed once (3 MB for 4 s).

    ``audio`` (C, T) may have any float type. They are computed in ``dtype``, when they are first needed: float32 is
    enough for ranking, and takes about half the time. Raises ValueError if the audio is empty or not finite in float32.
    """

    scales: tuple[MelAnalysis, ...] = MSS_SCALES
    mfcc_scale = MFCC_SCALE
    sot_hop = SOT_HOP

    def __init__(self, audio: NDArray[np.floating], dtype: type[np.floating] = np.float64) -> None:
        samples = _checked(audio, dtype)
        self.dtype = dtype
        self._shape = samples.shape
        # Equal channels have equal distances.
        self._distinct = samples[:1] if is_mono(samples) else samples
        self._spectrograms: dict[int, NDArray[np.floating]] = {}

    def compare(self, other: SoundFeatures, samples: int | None = None) -> dict[str, float]:
        """All four metrics by name; symmetric. Takes and raises what ``parts`` does."""
        found = dict.fromkeys(METRICS, 0.0)
        for name, part in self.parts(other, samples):
            found[name] += part
        return found

    def parts(self, other: SoundFeatures, samples: int | None = None) -> Iterator[tuple[str, float]]:
        """Names of metrics and parts of their values, which add up to the values; what is fast to compute comes first.

        With ``samples``, only frames that are centred within the first so many samples count. Decibels stay relative to
        the whole sound's maximum. Raises ValueError for sounds of unequal shapes.
        """
        _check_shapes(self._shape, other._shape)
        samples = samples or self._shape[1]
        first = slice(_frames(samples, RMS_HOP))
        yield "rms", _cosine(self._envelope[first], other._envelope[first])
        for number, scale in enumerate(self.scales):
            first = slice(_frames(samples, scale.hop_length))
            mine, theirs = self._spectrogram(number)[..., first], other._spectrogram(number)[..., first]
            yield "mss", float(np.abs(mine - theirs).mean()) / len(self.scales)
        first = slice(_frames(samples, self.sot_hop))
        yield "sot", float(np.abs(self._cumulative[first] - other._cumulative[first]).mean())
        first = slice(_frames(samples, self.mfcc_scale.hop_length))
        yield "wmfcc", wmfcc_distance(*_of_equal_width(self._mfccs[first], other._mfccs[first]))

    def computed(self) -> Self:
        """The features, all computed, without the sound: for a target that other processes get."""
        self.compare(self)
        self._distinct = self._distinct[:, :0]
        return self

    def _spectrogram(self, number: int) -> NDArray[np.floating]:
        if number not in self._spectrograms:
            self._spectrograms[number] = relative_decibels(self.scales[number].power(self._distinct))
        return self._spectrograms[number]

    @cached_property
    def _mfccs(self) -> NDArray[np.floating]:
        return mfcc_frames(self.mfcc_scale.power(self._distinct))

    @cached_property
    def _cumulative(self) -> NDArray[np.floating]:
        mono = self._distinct.mean(axis=0)
        return cumulative_spectra(np.abs(sot_spectra(sot_frames(mono))))

    @cached_property
    def _envelope(self) -> NDArray[np.floating]:
        return _envelope(self._distinct.mean(axis=0))


# A sound (C, T), or its features if it is in many pairs.
Sound = NDArray[np.floating] | SoundFeatures


def measure(target: Sound, other: Sound) -> dict[str, float]:
    """All metrics of one pair, by name, in the precision of a target's features. Raises as ``SoundFeatures`` does."""
    target = target if isinstance(target, SoundFeatures) else SoundFeatures(target)
    return target.compare(other if isinstance(other, SoundFeatures) else SoundFeatures(other, target.dtype))


def measure_pairs(pairs: Iterable[tuple[Key, Sound, Sound]], workers: int) -> Iterator[tuple[Key, dict[str, float]]]:
    """Yields (key, metrics) of every (key, target, other), in order, measured on ``workers`` threads.

    Threads are enough: NumPy and SciPy do almost all of the work and release Python's lock.

    Takes only a few pairs ahead, so that not all pairs need to be in memory. Raises ValueError as ``measure`` does,
    with the pair's key.
    """
    pending: deque[tuple[Key, Future[dict[str, float]]]] = deque()
    executor = ThreadPoolExecutor(workers)
    try:
        for key, target, other in pairs:
            pending.append((key, executor.submit(measure, target, other)))
            if len(pending) > 2 * workers:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())
    finally:
        executor.shutdown(cancel_futures=True)


def _result(key: Key, future: Future[dict[str, float]]) -> tuple[Key, dict[str, float]]:
    try:
        return key, future.result()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def mss(target: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """MSS alone, for two sounds (C, T). Raises ValueError as ``SoundFeatures`` does."""
    _check_shapes(target.shape, other.shape)
    return spectrogram_distance(mss_spectrograms(_checked(target)), mss_spectrograms(_checked(other)))


def mss_spectrograms(audio: NDArray[np.floating]) -> Spectrograms:
    """The three spectrograms (C, M, F) in dB that ``mss`` compares, of a sound (C, T)."""
    return [relative_decibels(scale.power(audio)) for scale in MSS_SCALES]


def spectrogram_distance(target: Spectrograms, other: Spectrograms) -> float:
    """MSS of two sounds, from their ``mss_spectrograms``."""
    return float(np.mean([np.abs(mine - theirs).mean() for mine, theirs in zip(target, other, strict=True)]))


def _of_equal_width(
    target: NDArray[np.floating], other: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Two sounds' MFCC frames; one channel is repeated where the other sound has several."""
    width = max(target.shape[1], other.shape[1])
    return np.tile(target, width // target.shape[1]), np.tile(other, width // other.shape[1])


def sot_frames(signal: NDArray[np.floating]) -> NDArray[np.floating]:
    """The frames (F, 2205) whose spectra ``sot`` compares, of a sound (T,)."""
    return centred_frames(signal, len(SOT_WINDOW), SOT_HOP)


def sot_spectra(frames: NDArray[np.floating]) -> NDArray[np.complexfloating]:
    """The spectra (F, B) of ``sot_frames``."""
    windowed = frames * SOT_WINDOW.astype(frames.dtype)
    spectra: NDArray[np.complexfloating] = np.asarray(scipy.fft.rfft(windowed, axis=-1, overwrite_x=True))
    return spectra


def cumulative_spectra(magnitudes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cumulative distributions (F, B) over frequency of magnitudes (F, B), which are replaced.

    In one dimension the transport distance of two distributions is the area between their cumulative distributions.
    """
    magnitudes /= np.maximum(magnitudes.sum(axis=-1, keepdims=True), SOT_LEAST_SUM)
    return np.cumsum(magnitudes, axis=-1, out=magnitudes)


def _envelope(mono: NDArray[np.floating]) -> NDArray[np.floating]:
    """Root mean squares (F,) of the frames of a sound (T,), relative to its peak; zeros for silence."""
    peak = np.abs(mono).max() or 1.0  # float64 cannot hold the squares of the faintest samples.
    return np.sqrt(centred_frames(np.square(mono / peak), RMS_LENGTH, RMS_HOP).mean(axis=-1))


def _cosine(target: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The cosine similarity of two envelopes (F,): 1 for two silent ones, 0 for one."""
    lengths = [float(np.sqrt(np.square(envelope).sum())) for envelope in (target, other)]
    if not any(lengths):
        return 1.0
    return float((target / (lengths[0] or 1.0) * (other / (lengths[1] or 1.0))).sum())


def _frames(samples: int, hop: int) -> int:
    """The number of frames that are centred no later than the end of so many samples."""
    return 1 + samples // hop


def _checked(audio: NDArray[np.floating], dtype: type[np.floating] = np.float64) -> NDArray[np.floating]:
    if audio.ndim != 2 or audio.size == 0:
        raise ValueError(f"audio must be (channels, samples), not {audio.shape}")
    # Powers of larger samples may overflow. A comparison with NaN is false.
    if not (np.abs(audio) <= np.finfo(np.float32).max).all():
        raise ValueError("audio must be finite")
    return np.asarray(audio, dtype)


def _check_shapes(target: tuple[int, ...], other: tuple[int, ...]) -> None:
    if target != other:
        raise ValueError(f"sounds to compare must have the same shape, not {target} and {other}")
