"""wMFCC: the distance between the timbres of two sounds, independent of timing.

A frame is the first 20 mel-frequency cepstral coefficients of each channel. Dynamic time warping aligns the frames of
two sounds at the least total distance. Definition: "Audio synthesizer inversion in symmetric parameter spaces with
approximately equivariant flow matching" (Hayes, Saitis, Fazekas, ISMIR 2025): windows of 50 ms every 10 ms, 128 mel
bands, mean absolute difference of two frames, diagonal steps weigh 2, divided by the sum of both lengths. The
coefficients are those of librosa's ``mfcc``. The alignment is the symmetric step pattern of Sakoe and Chiba, "Dynamic
programming algorithm optimization for spoken word recognition" (1978).

Shapes: C channels, T samples, F frames, N and M frames of two sounds.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from data_pipeline.audio.spectrogram import MIN_POWER, MelAnalysis, relative_decibels

N_MFCC = 20
SCALE = MelAnalysis(n_fft=2205, hop_length=441, n_mels=128, window_mean=0.5)


def mfcc_frames(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """MFCC frames (F, 20 C) of mel power (C, M, F), as ``SCALE`` gives it, one channel's after the other's."""
    # The first coefficient is the level: the decibels must be absolute.
    loudest = 10.0 * np.log10(max(power.max(), MIN_POWER))
    decibels = relative_decibels(power) + loudest
    coefficients = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, :N_MFCC]
    return np.ascontiguousarray(coefficients.reshape(-1, coefficients.shape[-1]).T)


def wmfcc_distance(target: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """wMFCC of two sounds, from their ``mfcc_frames`` (N, 20 C) and (M, 20 C)."""
    cost = cdist(target, other, "cityblock") / target.shape[1]
    return warping_cost(cost) / (len(target) + len(other))


def warping_cost(cost: NDArray[np.float64]) -> float:
    """The least sum of costs (N, M) on a path from the first cell to the last.

    A step goes down, right, or diagonally. A diagonal step counts the cell that it enters twice. With D the least sum
    up to a cell and c the cell's cost,

        D[i, j] = min(D[i, j-1] + c[i, j], e[j]),   e[j] = min(D[i-1, j], D[i-1, j-1] + c[i, j]) + c[i, j].

    Along a row, with s[j] = c[i, 0] + ... + c[i, j], this is D[i, j] = s[j] + min over k <= j of (e[k] - s[k]): a
    running minimum, which NumPy computes for a whole row at once.
    """
    sums = np.cumsum(cost, axis=1)
    least = sums[0]
    for row, along in zip(cost[1:], sums[1:], strict=True):
        entered = least.copy()
        np.minimum(least[1:], least[:-1] + row[1:], out=entered[1:])
        entered += row
        entered -= along
        least = np.minimum.accumulate(entered) + along
    return float(least[-1])
