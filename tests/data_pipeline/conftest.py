"""Small synthetic data sets in both shard formats."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.param_spec import load_spec
from data_pipeline.shards import ShardAttributes, ShardReader, write_shard
from data_pipeline.splits import write_splits

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = load_spec("surge_simple")
ROWS = 2


@dataclass
class Rows:
    """What one shard holds."""

    audio: NDArray[np.float16]
    mel_spec: NDArray[np.float16]
    param_array: NDArray[np.float32]


def make_rows(seed: int, rows: int = ROWS, width: int = SPEC.width) -> Rows:
    """Plausible rows: audible noise, spectrograms within -80..0 dB, columns in [0, 1]."""
    rng = np.random.default_rng(seed)
    audio = rng.uniform(-0.5, 0.5, (rows, 2, 176400)).astype(np.float16)
    mel_spec = rng.uniform(-80, 0, (rows, 2, 128, 401)).astype(np.float16)
    return Rows(audio, mel_spec, rng.uniform(0.01, 0.99, (rows, width)).astype(np.float32))


def attributes(**changes: Any) -> ShardAttributes:
    values: dict[str, Any] = {
        "spec_name": SPEC.name,
        "spec_hash": SPEC.content_hash,
        "seed": 1,
        "first_sample_index": 0,
        "synth_name": "test",
        "synth_version": "1.0",
    }
    return ShardAttributes(**{**values, **changes})


def write(path: Path, rows: Rows, **changes: Any) -> Path:
    write_shard(path, rows.audio, rows.mel_spec, rows.param_array, attributes(**changes))
    return path


def write_old(path: Path, rows: Rows) -> Path:
    """A shard as the reference writes them: float32 spectrograms, guessed chunks, attributes on audio alone."""
    arrays = {"audio": rows.audio, "mel_spec": rows.mel_spec.astype(np.float32), "param_array": rows.param_array}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=True, compression=hdf5plugin.Blosc2())
        file["audio"].attrs.update({"sample_rate": 44100.0, "channels": 2, "velocity": 100})
    return path


def run_cli(
    module: str, *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Runs ``python -m data_pipeline.<module>`` as a person does; no run may end in a traceback."""
    result = subprocess.run(
        [sys.executable, "-m", f"data_pipeline.{module}", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in result.stderr
    return result


def assert_usage_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """One line on stderr that holds the words, and exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """``set/shards`` with shards 0, 1, 2 and 10 of two rows each."""
    folder = tmp_path / "set" / "shards"
    folder.mkdir(parents=True)
    for number in (0, 1, 2, 10):
        write(folder / f"shard-{number}.h5", make_rows(number))
    return folder


@pytest.fixture
def data_set(shards: Path) -> Path:
    """``set/splits`` with train.h5 of shards 0, 1 and 2 and test.h5 of shard 10."""
    target = shards.parent / "splits"
    write_splits(shards, target, {"train": [0, 1, 2], "test": [10]})
    return target


def all_rows(reader: ShardReader, name: str) -> NDArray[Any]:
    return np.stack([reader.read(name, index) for index in range(len(reader))])
