"""Damages HDF5 files in reproducible ways and reads them: a process of its own, because HDF5 is C and may take it down.

    python -m tests.data_pipeline.mutated_shards FOLDER FIRST LAST

reads the mutants of these numbers; mutant n is made of a file in FOLDER/whole and lies in FOLDER under its name. Each
line on stdout is "n begins" or "n outcome", so that a dead process leaves the number of the mutant that killed it.
"""

from __future__ import annotations

import resource
import signal
import sys
import traceback
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.shards.reader import ROW_SHAPES, ShardReader
from data_pipeline.shards.rechunk import _attributes
from data_pipeline.shards.virtual_sources import missing_sources

MEMORY_BYTES = 3 << 30
# Of processor time, which a busy machine does not stretch; whole files take a hundredth of a second.
SECONDS_PER_MUTANT = 10.0
# Sizes, offsets and counts are little-endian integers: these are false in all the ways that matter.
ODD_NUMBERS = [0, 1, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


@cache
def structure(path: Path) -> NDArray[np.int64]:
    """Positions of all bytes of an HDF5 file that are not rows' data: headers, trees, heaps, attributes, links."""
    is_structure = np.ones(path.stat().st_size, bool)
    with h5py.File(path) as file:
        for name in file:
            if isinstance(file.get(name, getlink=True), h5py.ExternalLink) or file[name].is_virtual:
                continue
            dataset = file[name]
            if dataset.chunks is None:
                is_structure[dataset.id.get_offset() :][: dataset.nbytes] = False
            for index in range(dataset.id.get_num_chunks() if dataset.chunks else 0):
                chunk = dataset.id.get_chunk_info(index)
                is_structure[chunk.byte_offset :][: chunk.size] = False
    return np.flatnonzero(is_structure)


def mutated(whole: bytes, positions: NDArray[np.int64], rng: np.random.Generator) -> bytes:
    """A damaged copy: mostly a few bytes of the structure, at times any byte, or the end."""
    mutant, kind = bytearray(whole), rng.integers(8)
    places = [int(place) for place in rng.choice(positions, size=3)]
    if kind <= 2:
        for place in places[: kind + 1]:
            mutant[place] ^= 1 << int(rng.integers(8))
    elif kind <= 4:
        size = int(rng.choice([1, 2, 4, 8]))
        number = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))] % (1 << 8 * size)
        mutant[places[0] : places[0] + size] = number.to_bytes(size, "little")
    elif kind == 5:
        mutant[places[0] : places[0] + 16] = whole[places[1] : places[1] + 16]
    elif kind == 6:
        mutant[int(rng.integers(len(mutant)))] ^= 1 << int(rng.integers(8))
    else:
        del mutant[int(rng.integers(len(mutant))) :]
    return bytes(mutant)


def use(path: Path) -> str:
    """Asks a shard or split for all that readers ask: "read", or "refused" with the first reason."""
    refusals = []
    for action in (missing_sources, read_rows, read_attributes):
        try:
            action(path)
        except UserError as error:
            refusals.append(str(error))
    return f"refused {refusals[0]}" if refusals else "read"


def read_rows(path: Path) -> None:
    reader = ShardReader(path)
    for name in ROW_SHAPES:
        reader.read(name, len(reader) - 1)
        for _, block in reader.blocks(name):
            assert block.shape[1:] == reader.row_shape(name)


def read_attributes(path: Path) -> None:
    _attributes(ShardReader(path), None)


def write_mutant(folder: Path, number: int) -> Path:
    """Puts a mutant into its place and returns that."""
    files = sorted((folder / "whole").iterdir())
    whole = files[number % len(files)]
    mutant = folder / whole.name
    mutant.unlink(missing_ok=True)  # Truncating a file instead waits for the disk.
    mutant.write_bytes(mutated(whole.read_bytes(), structure(whole), np.random.default_rng(number)))
    return mutant


def main(folder: Path, first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for number in range(first, last):
        mutant = write_mutant(folder, number)
        print(number, "begins", flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_MUTANT)  # Ends this process, whatever HDF5 is doing.
        try:
            outcome = use(mutant)
        except BaseException:
            outcome = f"crashed {traceback.format_exc()}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(number, ascii(outcome)[1:-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
