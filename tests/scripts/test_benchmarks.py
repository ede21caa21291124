"""Benchmarks run, and their figures have the right units; no test asks how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from scripts.benchmarks import roofline, run
from scripts.benchmarks.report import table
from tests.helpers import REPOSITORY, TINY, assert_usage_error, run_cli

ON_DEVICE = {"name", "median_ms", "samples_per_second", "gflop", "gb_moved", "percent_of_peak", "percent_of_bandwidth"}
TINY_FLAGS = [f"--config.{key}={value}" for key, value in TINY.items()]


def run_benchmark(name: str, *arguments: object) -> subprocess.CompletedProcess:
    return run_cli(f"scripts.benchmarks.{name}", *arguments, cwd=REPOSITORY)


def measure(name: str, folder: Path, *arguments: object) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The setting of a benchmark's report, and its rows by name; checks that all figures are positive."""
    file = folder / "figures.json"
    result = run_benchmark(name, f"--json={file}", *arguments)
    assert result.returncode == 0, result.stderr
    setting = json.loads(file.read_text())
    rows = {row.pop("name"): row for row in setting.pop("rows")}
    for name, row in rows.items():
        assert f"measured {name}: " in result.stderr
        assert f"\n{name} " in result.stdout
        assert all(math.isfinite(value) and value > 0 for value in row.values() if value is not None), (name, row)
        assert row["median_ms"] > 0
    return setting, rows


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    setting, rows = measure("step", tmp_path, "--config=configs/important.py", "--steps=1", *TINY_FLAGS)
    assert [*rows] == ["encoder forward", "field forward", "gradient", "train step"]
    assert all({"name", *row} == ON_DEVICE for row in rows.values())
    step = rows["train step"]
    assert step["samples_per_second"] == pytest.approx(TINY["data.batch_size"] / setting["step_seconds"])
    assert step["gflop"] == setting["gflop_per_step"] == rows["gradient"]["gflop"]
    # The gradient has both forward passes and, of each product of theirs, two more.
    assert step["gflop"] > 2 * (rows["encoder forward"]["gflop"] + rows["field forward"]["gflop"])
    # Weights, two moments and the average of each parameter, read and written.
    assert step["gb_moved"] > 2 * 4 * 4 * setting["parameters"] / 1e9


@pytest.mark.slow
def test_sampler(tmp_path: Path) -> None:
    options = ["--repeats=1", "--solves=heun-3", "--rows=6"]
    setting, rows = measure("sampler", tmp_path, "--config=configs/important.py", *options, *TINY_FLAGS)
    assert [*rows] == [
        "encoder",
        "field, guidance 2",
        "rk4-2, guidance 2",
        "heun-3, guidance 2",
        "a batch, host to host",
    ]
    assert all({"name", *row} == ON_DEVICE for row in rows.values())
    encoder, field, rk4, heun, batch = rows.values()
    for column in ("gflop", "gb_moved"):
        assert rk4[column] == pytest.approx(encoder[column] + 8 * field[column])
        assert heun[column] == pytest.approx(encoder[column] + 6 * field[column])
        assert batch[column] == rk4[column]
    assert setting["drawn_rows"] == 6
    assert setting["drawn_rows_seconds"] > 0


@pytest.mark.slow
def test_loader(tmp_path: Path) -> None:
    options = ["--rows=16", "--batches=1", "--workers=0,1", "--old_rows=16"]
    setting, rows = measure("loader", tmp_path, "--config=configs/important.py", *options, *TINY_FLAGS)
    assert [*rows] == [
        "bare h5py loop",
        "cache none, one thread, not coupled",
        "cache none, one thread, coupled",
        "cache none, workers 0",
        "cache none, workers 0, on device",
        "cache none, workers 1",
        "cache none, workers 1, on device",
        "cache host, one thread, not coupled",
        "cache host, one thread, coupled",
        "cache host, workers 0",
        "cache host, workers 0, on device",
        "cache device, one thread, not coupled",
        "cache device, one thread, coupled",
        "cache device, workers 0",
        "cache device, workers 0, on device",
        "coupling 8 rows",
        "old shard, row by row",
        "rechunked, one thread, not coupled",
    ]
    assert rows["bare h5py loop"]["percent_of_bare_loops"] == pytest.approx(100)
    assert rows["coupling 8 rows"]["percent_of_bare_loops"] is None
    assert setting["data_rows"] == 16
    spectrogram = 2 * 2 * 128 * 401
    assert 0 < setting["stored_kb_a_row"] < spectrogram / 1e3
    # Rows and noise of 92 columns, beside spectrograms in float16, or beside numbers of rows.
    assert rows["cache none, workers 0"]["gb_moved"] == 8 * (spectrogram + 2 * 4 * 92) / 1e9
    assert rows["cache device, workers 0"]["gb_moved"] == 8 * (4 + 2 * 4 * 92) / 1e9


@pytest.mark.slow
def test_loader_of_a_data_set(tmp_path: Path, tiny_root: Path) -> None:
    options = [f"--config.data.root={tiny_root}", "--batches=1", "--caches=host", "--workers=", "--old_rows=0"]
    setting, rows = measure("loader", tmp_path, "--config=configs/regression.py", *options, *TINY_FLAGS[:2])
    assert setting["data_rows"] == 24
    of_cache = ["one thread, not coupled", "workers 0", "workers 0, on device"]
    assert [*rows] == ["bare h5py loop", *(f"cache host, {name}" for name in of_cache), "coupling 8 rows"]


@pytest.mark.slow
def test_render(tmp_path: Path) -> None:
    options = ["--config=configs/render_dexed.py", "--rows=16", "--workers=1"]
    setting, rows = measure("renderer", tmp_path, *options)
    assert {"synthesizer", "mel spectrogram", "an accepted row, in this process"} < {*rows}
    assert setting["accepted_rows"] == 16
    worker = rows["an accepted row, workers 1"]
    assert worker["percent_of_real_time"] == pytest.approx(worker["median_ms"] / 40)  # Of 4 s.
    assert worker["gflop"] is None


@pytest.mark.slow
def test_k_osc(tmp_path: Path) -> None:
    """Of a model that the PyTorch loop lacks, so that there are the same rows where PyTorch is."""
    sizes = {"encoder.dim": 16, "encoder.channels": 4, "field.dim": 16, "field.layers": 2, "field.ff_dim": 32}
    options = ["--config=configs/k_osc.py:norm=layer", "--config.data.batch_size=8", "--steps=1"]
    tiny = [f"--config.model.{key}={value}" for key, value in sizes.items()]
    setting, rows = measure("k_osc", tmp_path, *options, *tiny)
    assert [*rows] == ["JAX", "JAX, data alone", "JAX, pairing alone"]
    assert all({"name", *row} == {*ON_DEVICE, "cpu_ms"} for row in rows.values())
    step, *parts = rows.values()
    assert None not in step.values()
    assert step["samples_per_second"] == pytest.approx(1e3 * setting["batch_size"] / step["median_ms"])
    rate = 1e3 * step["gflop"] / step["median_ms"]
    assert step["percent_of_peak"] == pytest.approx(100 * rate / setting["matmul_gflop_per_second"])
    # Weights, two moments and the average of each parameter, read and written.
    assert step["gb_moved"] > 2 * 4 * 4 * setting["parameters"] / 1e9
    for part in parts:
        assert [column for column, value in part.items() if value is not None] == ["median_ms"]
    assert (setting["model"], setting["oscillators"], setting["batch_size"]) == ("flow", 4, 8)
    assert setting["torch_over_jax_seconds"] is setting["torch_over_jax_range"] is None


@pytest.mark.slow
def test_run(tmp_path: Path, tiny_root: Path) -> None:
    workdir = tmp_path / "run"
    options = ["--config.data.root", tiny_root, "--config.data.workers=0", "--config.train.log_every=2", "--steps=8"]
    options += [f"--workdir={workdir}", "--config.checkpoint.every=3", "--noconfig.flow.coupling"]
    tiny = [flag for flag in TINY_FLAGS if not flag.startswith("--config.train.steps=")]
    setting, rows = measure("run", tmp_path, "--config=configs/important.py", *tiny, *options)
    ((name, row),) = rows.items()
    assert name == "steps 4 to 8"
    assert {*row} == {"median_ms", "sustained_ms", "steps_per_second", "samples_per_second"}
    assert row["steps_per_second"] == pytest.approx(1e3 / row["sustained_ms"])
    assert row["samples_per_second"] == pytest.approx(TINY["data.batch_size"] * row["steps_per_second"])
    assert (setting["batch_size"], setting["cache"]) == (TINY["data.batch_size"], "none")
    assert setting["run"].startswith("8 steps measured, ")
    asked = json.loads((workdir / "config.json").read_text())
    assert (asked["checkpoint"]["every"], asked["train"]["steps"]) == (3, 8)
    assert asked["train"]["eval_every"] == TINY["train.eval_every"] > 0
    assert asked["flow"]["coupling"] is False
    assert_usage_error(run_benchmark("run", f"--workdir={workdir}"), f"{workdir} holds a run")


def test_a_run_is_measured_from_its_second_logged_step() -> None:
    logged = [(10, 0.0), (20, 10.0), (30, 12.0), (40, 14.0), (50, 20.0)]
    assert run.row(logged, batch_size=8) == {
        "name": "steps 20 to 50",
        "median_ms": 200.0,
        "sustained_ms": pytest.approx(1e4 / 30),
        "steps_per_second": pytest.approx(3.0),
        "samples_per_second": pytest.approx(24.0),
    }
    with pytest.raises(UserError, match="fewer than three"):
        run.row(logged[:2], batch_size=8)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("k_osc", "--config=configs/important.py"), ("data.source=shards", "configs/k_osc.py")),
        (("loader", "--config=configs/k_osc.py"), ("data.source=k_osc",)),
        (("loader", "--config=configs/important.py", "--workers=two"), ("--workers", "must be numbers")),
        (("loader", "--config=configs/important.py", "--caches=disk"), ("--caches", "none,host,device")),
        (("run", "--config.data.root", "nowhere"), ("nowhere",)),
        (("run", "--config.train.steps=500"), ("--config.train.steps is --steps here",)),
        (("run", "--steps=149"), ("--steps=149 must be three times --config.train.log_every=50",)),
        (("sampler", "--config=configs/important.py", "--config.sampling.solver=dopri5"), ("dopri5", "euler")),
        (("sampler", "--config=configs/important.py", "--solves=rk4"), ("'rk4' with 0 steps", "rk4-100")),
    ],
)
def test_a_wrong_command_ends_in_one_line(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_usage_error(run_benchmark(*command), *words)


def test_a_program_is_counted_whole() -> None:
    left, right = jnp.ones((64, 32)), jnp.ones((32, 16))
    program = roofline.compile_program(jnp.matmul, left, right)
    assert program.flop == 2 * 64 * 32 * 16
    assert program.moved == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert program.compile_seconds > 0
    np.testing.assert_array_equal(program.call(left, right), jnp.full((64, 16), 32.0))


def test_limits_are_those_of_all_devices_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes, of which the second takes long enough."""
    seconds = iter([0.0, 0.5, 0.0, 0.25])

    def fake(call: Any) -> float:
        assert jax.block_until_ready(call()).size > 0
        return next(seconds)

    monkeypatch.setattr(roofline, "median_seconds", fake)
    monkeypatch.setattr(roofline, "MATRIX_SIZES", (8, 16, 32))
    monkeypatch.setattr(roofline, "COPY_BYTES", (64, 128, 256))
    limits, devices = roofline.measure_limits("float32"), jax.device_count()
    assert limits.matrix_size == 16
    assert limits.flops == devices * 2 * 16**3 / 0.5
    assert limits.bandwidth == devices * 2 * 128 / 0.25
    assert limits.figures["matmul_gflop_per_second"] == limits.flops / 1e9


def test_shares_of_the_limits() -> None:
    limits = roofline.Limits("a device", 16, flops=4e12, bandwidth=1e11)
    row = limits.row(
        "name", 0.5, samples=8, program=roofline.Program(print, flop=1e12, moved=1e10, compile_seconds=1.0)
    )
    expected = {
        "median_ms": 500,
        "samples_per_second": 16,
        "gflop": 1000,
        "gb_moved": 10,
        "percent_of_peak": 50,
        "percent_of_bandwidth": 20,
    }
    assert {key: value for key, value in row.items() if key != "name"} == pytest.approx(expected)


def test_a_missing_value_is_shown() -> None:
    lines = table([{"name": "long name", "median_ms": 1.5, "percent_of_peak": None, "samples_per_second": 3.0}])
    assert lines.splitlines() == [
        "name       median ms  % of peak  samples/s",
        "long name        1.5        n/a          3",
    ]


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is here")
def test_the_comparison_with_pytorch_asks_for_it() -> None:
    assert_usage_error(run_benchmark("beside_torch"), "PyTorch is not installed here: pip install torch")
