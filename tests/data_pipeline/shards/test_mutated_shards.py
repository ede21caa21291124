"""Damaged specs, shards and splits: a reader refuses them in one line or reads them, and does nothing else."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec, spec_text
from data_pipeline.shards.reader import ROW_SHAPES
from data_pipeline.shards.splits import write_splits
from tests.data_pipeline.mutated_shards import write_mutant
from tests.data_pipeline.params.test_spec import small_spec
from tests.helpers import REPOSITORY, Rows, make_rows, write, write_old

JSON_BYTES = np.frombuffer(b'0123456789-+.eE"[]{}:, \\u\x00\xfftruefalsnN', np.uint8)
# What a person, a program or an enemy might write where something else belongs.
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 4097, 2**20, 2**63, -(10**400), 0.5, -0.0, 5e-324, 1e-7, 1e308, -1e308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        "pitch",
        "osc_1_",
        "continuous",
        "categorical",
        "x" * 300,
        "\0",
        "\n",
    ),
    *("\ud800", [], {}, [[]], [0], [0.5, 0.5], ["saw"], [None], {"min": 0}, [["osc_1_", "osc_2_"]], list(range(5000))),
]


def mutated_bytes(text: bytes, rng: np.random.Generator) -> bytes:
    """A few flipped bits or false characters, a cut, a repeated stretch or a lost one."""
    mutant, kind = bytearray(text), rng.integers(5)
    start, stop = sorted(int(position) for position in rng.integers(len(text), size=2))
    if kind == 0:
        for position in rng.integers(len(text), size=2):
            mutant[position] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        mutant[start] = int(rng.choice(JSON_BYTES))
    elif kind == 2:
        del mutant[start:]
    elif kind == 3:
        mutant[start:start] = mutant[start:stop]
    else:
        del mutant[start : min(stop, start + 20)]
    return bytes(mutant)


def nodes(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of JSON data."""
    for key in data if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from nodes(data[key])


def mutated_structure(data: Any, rng: np.random.Generator) -> bytes:
    """One or two values replaced by odd ones, lost, exchanged, repeated or put under another name."""
    mutant = copy.deepcopy(data)
    for _ in range(rng.integers(1, 3)):
        places = list(nodes(mutant))
        if not places:
            break
        (container, key), (other, other_key) = (places[index] for index in rng.integers(len(places), size=2))
        kind = rng.integers(6)
        if kind <= 1:
            container[key] = copy.deepcopy(ODD_VALUES[rng.integers(len(ODD_VALUES))])
        elif kind == 2:
            del container[key]
        elif kind == 3:
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 4 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif isinstance(container[key], int | float):
            container[key] *= float(rng.choice([-1.0, 0.0, 1e-9, 0.3, 1e9, 1e300]))
    return json.dumps(mutant).encode()


def use(path: Path) -> str:
    """Loads a spec and does with it all that can be done; "loaded", or in one line why it was refused."""
    try:
        spec = load_spec(str(path))
    except UserError as error:
        return str(error)
    rows = np.concatenate([spec.sample(0, [0, 1], [0, 0]), np.random.default_rng(0).normal(size=(2, spec.width))])
    for row in rows:
        values = spec.decode(row)
        encoded = spec.encode(values)
        assert encoded.shape == (spec.width,) == (len(spec.column_names),)
        assert np.all((encoded >= 0) & (encoded <= 1))
        assert set(spec.labels(values)) <= set(spec.slices)
    assert spec.column_permutations().shape[1] == spec.width
    assert len(spec.content_hash) == 64
    "\n".join([spec.name, *spec.column_names]).encode()
    return "loaded"


def kinds(refusals: Iterable[str]) -> set[str]:
    """What is left of refusals without their files, names and numbers."""
    return {" ".join(re.findall(r"\b[a-z]+\b", re.split(r"\.h5: |malformed:", line)[-1])) for line in refusals}


@pytest.mark.parametrize("many", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_specs_raise_nothing_but_user_errors(tmp_path: Path, many: int) -> None:
    rng = np.random.default_rng(0)
    small, simple = small_spec(), json.loads(spec_text("surge_simple"))
    cases = [
        (4000, lambda: mutated_bytes(json.dumps(small).encode(), rng)),
        (5500, lambda: mutated_structure(small, rng)),
        (250, lambda: mutated_bytes(spec_text("surge_simple").encode(), rng)),
        (250, lambda: mutated_structure(simple, rng)),
    ]
    path = tmp_path / "spec.json"
    outcomes: Counter[str] = Counter()
    for count, mutant in cases:
        for _ in range(count * many // 10_000):
            path.unlink(missing_ok=True)  # Truncating a file instead waits for the disk.
            path.write_bytes(mutant())
            outcomes[use(path)] += 1
    assert sum(outcomes.values()) == many
    assert not [line for line in outcomes if "\n" in line or len(line) > 400 + len(str(path))]
    # The mutations reach what must be refused, in every layer, and what must be read.
    assert outcomes["loaded"] > many // 10
    assert len(kinds(outcomes)) > (40 if many == 10_000 else 25)


def plain_rows(seed: int) -> Rows:
    """Rows that compress to almost nothing, so that most bytes of their files are structure."""
    rows = make_rows(seed, 3)
    rows.audio[:] = 0.25
    rows.mel_spec[:] = -40
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``whole`` with an old and a new shard, a split, and a file of links; ``source`` with what the last two map."""
    whole, source = tmp_path / "whole", tmp_path / "source"
    whole.mkdir()
    source.mkdir()
    write(whole / "shard-0.h5", plain_rows(0))
    write_old(whole / "shard-1.h5", plain_rows(1))
    for number in range(2):
        write(source / f"shard-{number}.h5", plain_rows(number))
    # Written where its mutants will lie, for the sake of the relative paths in it.
    write_splits(source, tmp_path, {"train": [0, 1]})
    (tmp_path / "train.h5").rename(whole / "train.h5")
    with h5py.File(whole / "links.h5", "w") as file:
        for name in ROW_SHAPES:
            file[name] = h5py.ExternalLink("source/shard-0.h5", name)
    return tmp_path


def outcomes_of(folder: Path, count: int) -> tuple[dict[int, str], list[int]]:
    """What came of the mutants 0 to ``count``, by number, and the numbers of those that killed the process."""
    outcomes: dict[int, str] = {}
    deaths = []
    first = 0
    while first < count:
        result = subprocess.run(
            [sys.executable, "-m", "tests.data_pipeline.mutated_shards", str(folder), str(first), str(count)],
            cwd=REPOSITORY,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # Each thread takes its share of address space.
            capture_output=True,
            text=True,
        )
        last = first
        for line in result.stdout.splitlines():
            number, outcome = line.split(" ", 1)
            last = int(number)
            if outcome != "begins":
                outcomes[last] = outcome
        if result.returncode:
            assert last not in outcomes, result.stderr
            deaths.append(last)
        first = last + 1
    return outcomes, deaths


# What any reader must ask of HDF5, and nothing of ours.
BARE_READER = """
import resource, sys
import h5py, hdf5plugin
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
def attempt(ask):
    try:
        return ask()
    except Exception:
        return None
file = h5py.File(sys.argv[1])
attempt(lambda: dict(file.attrs))
for name in attempt(lambda: list(file)) or []:
    node = attempt(lambda: file[name])
    attempt(lambda: node.is_virtual and node.virtual_sources())
    attempt(lambda: dict(node.attrs))
    attempt(lambda: node[-1:])
"""


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mutated_shards_and_splits_raise_nothing_but_user_errors(folder: Path, count: int) -> None:
    outcomes, deaths = outcomes_of(folder, count)
    assert not [outcome for outcome in outcomes.values() if outcome.startswith("crashed")]
    # HDF5 2.0 has two faults of its own that no reader can catch, both in what it decodes from a global heap: a rank
    # beyond 32 of a virtual dataset's selection overwrites its stack, and a free object of size 0 is an endless loop.
    assert len(deaths) <= count // 200
    for number in deaths:
        mutant = write_mutant(folder, number)
        bare = subprocess.run([sys.executable, "-c", BARE_READER, mutant], capture_output=True, timeout=120)
        assert bare.returncode < 0, f"mutant {number} kills our reader but not a bare one"
    read = sum(outcome == "read" for outcome in outcomes.values())
    # The mutations reach what must be refused, in every layer, and what must be read.
    assert count // 4 < read < count * 3 // 4
    assert len(kinds(outcomes.values())) > min(count // 10, 100)
