"""Rows as the compressed chunks of a shard, in which form workers send them and shards store them.

A worker compresses the rows that it renders. The one process that writes a shard only copies bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import AUDIO_SHAPE, MEL_SHAPE
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, create_dataset

_ROUNDER = np.float32(0.75)
_SMALLEST_NORMAL = np.float32(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class EncodedRow:
    """One row: compressed chunks of ``audio`` and ``mel_spec``, and ``param_array`` as float32 bytes.

    ``audio`` is empty where it is not stored.
    ``index`` is the sample's number in the data set, ``attempt`` the number of patches refused before this one.
    """

    index: int
    attempt: int
    params: bytes
    audio: bytes
    mel_spec: bytes


@dataclass(frozen=True)
class RenderedBatch:
    """Accepted rows in the order of the batch's indices, and the number of refused renders by reason.

    ``sounding`` has the refused attempts (index, attempt) that sounded before their note.
    """

    rows: tuple[EncodedRow, ...]
    refused: Counter[str] = field(default_factory=Counter)
    sounding: tuple[tuple[int, int], ...] = ()


class RowEncoder:
    """Compresses rows exactly as HDF5 does: HDF5 writes them to a file in memory."""

    def __init__(self) -> None:
        # No chunk cache: a written chunk can be read back at once.
        self._file = h5py.File(f"rows-in-memory-{id(self)}", "w", driver="core", backing_store=False, rdcc_nbytes=0)
        shapes = {AUDIO: AUDIO_SHAPE, MEL_SPEC: MEL_SHAPE}  # Parameters are not compressed.
        self._datasets = {name: create_dataset(self._file, name, 1, shape) for name, shape in shapes.items()}

    def encode(
        self,
        index: int,
        attempt: int,
        audio: NDArray[np.floating] | None,
        mel_spec: NDArray[np.floating],
        params: NDArray[np.float32],
    ) -> EncodedRow:
        """Rounds audio (2, 176400), if any, and mel_spec (2, 128, 401) to float16 and compresses them; params (W,)."""
        sound = b"" if audio is None else self._chunk(AUDIO, audio)
        return EncodedRow(index, attempt, params.astype("<f4").tobytes(), sound, self._chunk(MEL_SPEC, mel_spec))

    def _chunk(self, name: str, array: NDArray[np.floating]) -> bytes:
        dataset = self._datasets[name]
        dataset[0] = _to_float16(array)
        filter_mask, chunk = dataset.id.read_direct_chunk((0,) * dataset.ndim)
        if filter_mask:
            raise RuntimeError(f"HDF5 did not compress {name}")
        return bytes(chunk)


def _to_float16(array: NDArray[np.floating]) -> NDArray[np.float16]:
    """Equals ``array.astype(np.float16)`` bit for bit, in a fifth of the time for a sound that fades.

    Processors are slow at numbers that become denormal by rounding. Such numbers are rounded before, by an addition:
    between 0.5 and 1, the step of float32 is 2**-24, the smallest number of float16.
    """
    if array.dtype == np.float16:
        return array.astype(np.float16)
    single = array.astype(np.float32)
    rounded = np.copysign((single + _ROUNDER) - _ROUNDER, single)
    np.copyto(rounded, single, where=~(np.abs(single) < _SMALLEST_NORMAL))
    return rounded.astype(np.float16)
