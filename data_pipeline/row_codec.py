"""Rows in the form in which they travel and are stored: as the compressed chunks of a shard.

Whoever renders a row also compresses it, so that the one process that writes a shard moves bytes and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards import AUDIO, MEL_SPEC, create_dataset, row_shapes

_ROUNDER = np.float32(0.75)
_SMALLEST_NORMAL = np.float32(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class EncodedRow:
    """One row: the chunks of ``audio`` and ``mel_spec`` as a shard holds them, ``param_array`` as float32 bytes.

    ``index`` is the sample's number in the data set, ``attempt`` how many patches were refused before this one.
    """

    index: int
    attempt: int
    params: bytes
    audio: bytes
    mel_spec: bytes


class RowEncoder:
    """Compresses rows exactly as HDF5 would: by letting it write them to a file in memory."""

    def __init__(self) -> None:
        # Without a chunk cache a written chunk can be read back at once.
        self._file = h5py.File(f"rows-in-memory-{id(self)}", "w", driver="core", backing_store=False, rdcc_nbytes=0)
        shapes = row_shapes(width=0)  # Parameters are not compressed.
        self._datasets = {name: create_dataset(self._file, name, 1, shapes[name]) for name in (AUDIO, MEL_SPEC)}

    def encode(
        self,
        index: int,
        attempt: int,
        audio: NDArray[np.floating],
        mel_spec: NDArray[np.floating],
        params: NDArray[np.float32],
    ) -> EncodedRow:
        """Rounds audio (2, 176400) and mel_spec (2, 128, 401) to float16 and compresses them; params (W,)."""
        return EncodedRow(
            index, attempt, params.astype("<f4").tobytes(), self._chunk(AUDIO, audio), self._chunk(MEL_SPEC, mel_spec)
        )

    def _chunk(self, name: str, array: NDArray[np.floating]) -> bytes:
        dataset = self._datasets[name]
        dataset[0] = _to_float16(array)
        filter_mask, chunk = dataset.id.read_direct_chunk((0,) * dataset.ndim)
        if filter_mask:
            raise RuntimeError(f"HDF5 did not compress {name}")
        return bytes(chunk)


def _to_float16(array: NDArray[np.floating]) -> NDArray[np.float16]:
    """What ``array.astype(np.float16)`` gives, bit for bit, in a fifth of its time where a sound fades.

    Processors take long over every number that rounding makes a denormal one. Those are rounded beforehand, by an
    addition: between 0.5 and 1, float32's step is float16's smallest, 2**-24.
    """
    if array.dtype == np.float16:
        return array.astype(np.float16)
    single = array.astype(np.float32)
    rounded = np.copysign((single + _ROUNDER) - _ROUNDER, single)
    np.copyto(rounded, single, where=~(np.abs(single) < _SMALLEST_NORMAL))
    return rounded.astype(np.float16)
