"""For tests of both packages: small synthetic data sets in both shard formats, and commands run as people do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from data_pipeline.params.spec import load_spec
from data_pipeline.shards.reader import ShardAttributes, ShardReader, write_shard
from tests.command_server import CommandServer

REPOSITORY = Path(__file__).resolve().parents[1]
# The render config of a synthesizer without dependencies, which no product file needs.
RENDER_SUBTRACTIVE = str(REPOSITORY / "tests" / "render_subtractive.py")
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
    """Runs ``python -m MODULE``; no run may end in a traceback (one of a lost worker is indented)."""
    return _run_python(["-m", module, *map(str, arguments)], cwd or Path.cwd(), environment)


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs ``python scripts/SCRIPT.py``; no run may end in a traceback."""
    return _run_python([f"scripts/{script}.py", *map(str, arguments)], REPOSITORY, {})


def _run_python(command: list[str], cwd: Path, changes: Mapping[str, str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **changes}
    server = _command_server()
    if server.serves(environment):
        result = server.run(command, cwd, environment, timeout=1500)
    else:
        command = [sys.executable, *command]
        result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=1500)
    assert not re.search("^Traceback", result.stderr, re.MULTILINE)
    return result


@cache
def _command_server() -> CommandServer:
    return CommandServer(REPOSITORY)


@contextmanager
def started(command: Sequence[object], stderr: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A Python command under way, which writes to a file, as it would stand still at a full pipe; killed in the end."""
    with stderr.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            **{"cwd": REPOSITORY, "stdout": subprocess.DEVNULL, "stderr": file, **options},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        print(stderr.read_text(), file=sys.stderr)  # Shown where a test fails.


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 300.0) -> None:
    """Waits for what a process is to bring about, if one is given; fails once it has ended without."""
    end = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None  # Before the condition, which its end may fulfil.
        if condition():
            return
        assert not ended, "the process has ended"
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended: what is left of an orphan stays where process 1 does not ask for it."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def preloaded(c_source: str, folder: Path) -> dict[str, str]:
    """The environment of a process in which these functions in C stand before those of the system."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    library = folder / "preloaded.so"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=c_source, text=True, check=True)
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "LD_PRELOAD": str(library)}


def assert_usage_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """One line on stderr that holds the words, and exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def all_rows(reader: ShardReader, name: str) -> NDArray[Any]:
    return np.stack([reader.read(name, index) for index in range(len(reader))])


# Both networks shrunk to what a CPU runs in a moment, in float32.
TINY: dict[str, Any] = {
    "compute_dtype": "float32",
    "data.batch_size": 8,
    "data.workers": 0,
    "model.encoder.dim": 16,
    "model.encoder.layers": 2,
    "model.encoder.heads": 2,
    "model.encoder.patch": (32, 32),
    "model.encoder.stride": (32, 32),
    "model.encoder.cnn_channels": 4,
    "model.encoder.cnn_stages": 3,
    "model.encoder.cnn_blocks": 1,
    "model.field.dim": 16,
    "model.field.layers": 2,
    "model.field.heads": 2,
    "model.field.ff_dim": 32,
    "model.field.tokens": 8,
    "model.field.time_features": 8,
    "train.steps": 12,
    "train.log_every": 1,
    "train.eval_every": 6,
    "checkpoint.every": 3,
    "validation.rows": 6,
    "validation.sampled_rows": 6,
    "validation.solver_steps": 2,
    "sampling.steps": 2,
    "sampling.batch_size": 4,
}


def tiny_flags(root: Path, workdir: Path, **changes: Any) -> list[str]:
    """Flags of ``synthjax.train`` for the tiny model; changes name keys with ``__`` for the dot."""
    overrides = TINY | {"data.root": root} | {key.replace("__", "."): value for key, value in changes.items()}
    values = [f"--config.{key}={value}" for key, value in overrides.items()]
    return ["--config=configs/important.py", f"--workdir={workdir}", *values]
