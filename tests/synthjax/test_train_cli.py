"""synthjax.train as a command: resume, signals, errors. Real processes receive real signals."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from synthjax.runs.checkpoints import Checkpoints
from tests.helpers import (
    REPOSITORY,
    assert_usage_error,
    is_alive,
    make_rows,
    run_cli,
    started,
    tiny_flags,
    wait_until,
    write,
)

STEPS = 12


def train(root: Path, workdir: Path, **changes: Any) -> subprocess.CompletedProcess:
    return run_cli("synthjax.train", *tiny_flags(root, workdir, **changes), cwd=REPOSITORY)


def start(root: Path, workdir: Path, **changes: Any) -> AbstractContextManager[subprocess.Popen]:
    """A run under way, with stderr in a file beside its workdir; leaving kills it."""
    return started(["-m", "synthjax.train", *tiny_flags(root, workdir, **changes)], workdir.with_name("stderr"))


def lines(workdir: Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def finished(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = train(tiny_root, workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def copy_of(workdir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workdir, tmp_path / "run"))


def test_a_run_leaves_what_others_rely_on(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "stats.npz", "spec.json"} <= names
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert (config["train"]["steps"], config["model"]["field"]["dim"]) == (STEPS, 16)
    records = [json.loads(line) for line in lines(finished)]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {"loss", "penalty", "lr", "grad_norm"} <= records[0].keys()
    validated = [record["step"] for record in records if "val/loss" in record]
    assert validated == [6, 12]
    assert {"val/mse", "val/mse_best_swap", "val/pitch_within_semitone"} <= records[5].keys()


def test_images_and_timings_are_in_tensorboard(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert {"assignment", "parameter_mse"} <= set(events.Tags()["images"])
    assert {"loss", "samples_per_second", "step_seconds", "step_jitter_seconds", "data_wait_seconds"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_figures(finished: Path, tiny_root: Path, tmp_path: Path, seed: int) -> None:
    workdir, enough = tmp_path / "run", random.Random(seed).randrange(1, STEPS)
    with start(tiny_root, workdir) as process:
        wait_until(lambda: len(lines(workdir)) >= enough, process)
    result = train(tiny_root, workdir)
    assert result.returncode == 0, result.stderr
    assert lines(workdir) == lines(finished)


@pytest.mark.slow
def test_sigterm_saves_exits_0_and_the_run_goes_on(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with start(tiny_root, workdir, train__steps=100_000, checkpoint__every=100_000, train__eval_every=0) as process:
        wait_until(lambda: len(lines(workdir)) >= 4, process)
        for _ in range(2):  # Clusters send it again.
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(timeout=300) == 0
    stopped = json.loads(lines(workdir)[-1])["step"]
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == stopped


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_130_with_workers_too(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with start(tiny_root, workdir, train__steps=100_000, checkpoint__every=100_000, data__workers=2) as process:
        wait_until(lambda: len(lines(workdir)) >= 3, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    message = workdir.with_name("stderr").read_text()
    assert "Traceback" not in message
    assert "asked to stop" in message
    assert "goes on from there" in message
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == json.loads(lines(workdir)[-1])["step"]


@pytest.mark.slow
def test_the_last_line_counts_the_steps_since_the_last_log_and_no_start_of_workers(
    tiny_root: Path, tmp_path: Path
) -> None:
    result = train(tiny_root, tmp_path / "run", train__steps=3, train__log_every=100, data__workers=1)
    assert result.returncode == 0, result.stderr
    last = result.stderr.splitlines()[-1]
    (waited,) = re.findall(r"^3 steps measured, .*, data wait ([\d.]+) %", last)
    assert float(waited) <= 100


# The signal comes from inside, so that it meets the run in time.
STOPPED_AFTER_5 = """
import os, runpy, signal, sys
from synthjax.training.writers import JsonLines
def scalars(lines, step, values):
    honest_scalars(lines, step, values)
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
honest_scalars, JsonLines.scalars = JsonLines.scalars, scalars
sys.argv = sys.argv[1:]
runpy.run_module("synthjax.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_stopping_and_loader_workers_do_not_change_the_figures(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = ["-c", STOPPED_AFTER_5, "synthjax.train", *tiny_flags(tiny_root, workdir, data__workers=2)]
    with started(command, tmp_path / "stderr") as process:
        assert process.wait(timeout=300) == 0
    assert 5 <= len(lines(workdir)) < STEPS
    result = train(tiny_root, workdir, data__workers=1)
    assert result.returncode == 0, result.stderr
    assert lines(workdir) == lines(finished)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["device", "host"])
def test_a_cache_changes_no_figure(finished: Path, tiny_root: Path, tmp_path: Path, cache: str) -> None:
    result = train(tiny_root, tmp_path / "run", data__cache=cache, data__workers=2)
    assert result.returncode == 0, result.stderr
    assert "read the training data into memory in" in result.stderr
    assert lines(tmp_path / "run") == lines(finished)


@pytest.mark.slow
def test_a_run_may_go_on_with_another_cache(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = ["-c", STOPPED_AFTER_5, "synthjax.train", *tiny_flags(tiny_root, workdir, data__cache="device")]
    with started(command, tmp_path / "stderr") as process:
        assert process.wait(timeout=300) == 0
    result = train(tiny_root, workdir, data__cache="host")
    assert result.returncode == 0, result.stderr
    assert lines(workdir) == lines(finished)


def test_a_finished_run_says_so(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = copy_of(finished, tmp_path)
    result = train(tiny_root, workdir)
    assert result.returncode == 0
    assert "this run is complete: 12 steps" in result.stderr
    assert lines(workdir) == lines(finished)


@pytest.mark.slow
def test_a_moved_data_set_and_other_settings_may_change(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = copy_of(finished, tmp_path)
    moved = Path(shutil.copytree(tiny_root.parent, tmp_path / "moved")) / "splits"
    result = train(moved, workdir, train__steps=13, train__log_every=13)
    assert result.returncode == 0, result.stderr
    assert json.loads(lines(workdir)[-1])["step"] == 13


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1, "model__field__dim": 32}, ["seed 0 -> 1", "model.field.dim 16 -> 32"]),
        ({"data__batch_size": 4}, ["data.batch_size 8 -> 4"]),
    ],
)
def test_another_run_in_the_workdir_is_refused(
    finished: Path, tiny_root: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    workdir = copy_of(finished, tmp_path)
    assert_usage_error(train(tiny_root, workdir, **changes), "choose another --workdir", *words)
    assert lines(workdir) == lines(finished)
    assert json.loads((workdir / "config.json").read_text(encoding="utf-8"))["seed"] == 0


def test_other_training_data_in_the_workdir_are_refused(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_root.parent, tmp_path / "other"))
    write(other / "shards" / "shard-0.h5", make_rows(99, 14))
    assert_usage_error(train(other / "splits", copy_of(finished, tmp_path)), "training data's first_rows_sha256")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__root": "/nowhere"}, ["no train.h5 under /nowhere"]),
        ({"data__batch_size": 64}, ["data.batch_size=64 is larger than the 24 training rows"]),
        ({"data__spec": "surge_xt"}, ["92 parameter columns but spec surge_xt has 300"]),
        ({"data__cache": "ram"}, ["data.cache=ram must be none or host or device"]),
        ({"data__spec": "serum"}, ["no spec is called 'serum'"]),
        ({"mesh__model": 3}, ["mesh.model=3", "1 devices"]),
        ({"model__field__heads": 3}, ["model.field.dim=16 is not a multiple of model.field.heads=3"]),
        ({"model__encoder__kind": "rnn"}, ["model.encoder.kind 'rnn'"]),
        ({"optim__name": "sgd"}, ["optim.name=sgd must be adam or adamw"]),
        ({"optim__warmup_steps": 99}, ["optim.warmup_steps=99"]),
        ({"train__log_every": 0}, ["train.log_every=0 must be at least 1"]),
        ({"train__stepz": 5}, ["unknown config key", "stepz", "steps"]),
        ({"train__steps": "many"}, ["train.steps"]),
    ],
)
def test_bad_settings_are_one_line(tiny_root: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    assert_usage_error(train(tiny_root, tmp_path / "run", **changes), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/none.py", "--workdir=w"], ["configs/none.py"]),
        (["--config=configs/flow_20k.py:lr_huge", "--workdir=w"], ["unknown variant 'lr_huge'", "lr_high"]),
        (["--config=configs/flow_20k.py"], ["workdir"]),
        (["--workdir=w"], ["config"]),
        (["--config=configs/flow_20k.py", "--workdir=w", "--speed=9"], ["speed"]),
        (["--config=configs/flow_20k.py", "--workdir=w", "data.root=x"], ["unexpected argument 'data.root=x'"]),
    ],
)
def test_bad_command_lines_are_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    arguments = [argument.replace("configs/", f"{REPOSITORY}/configs/") for argument in arguments]
    words = [word.replace("configs/", f"{REPOSITORY}/configs/") for word in words]
    assert_usage_error(run_cli("synthjax.train", *arguments, cwd=tmp_path), *words)


def test_missing_statistics_name_the_command_that_makes_them(tiny_root: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_root.parent, tmp_path / "data"))
    (data / "splits" / "stats.npz").unlink()
    assert_usage_error(train(data / "splits", tmp_path / "run"), "python -m data_pipeline.stats")


def test_a_shard_that_has_moved_is_refused_not_read_as_zeros(tiny_root: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_root.parent, tmp_path / "data"))
    (data / "shards" / "shard-1.h5").rename(tmp_path / "shard-1.h5")
    assert_usage_error(train(data / "splits", tmp_path / "run"), "shard-1.h5")


def test_a_truncated_shard_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_root.parent, tmp_path / "data"))
    os.truncate(data / "shards" / "shard-1.h5", 5_000)
    assert_usage_error(train(data / "splits", tmp_path / "run"), "shard-1.h5")


def with_nan(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set, with a spectrogram that is not finite in row 5."""
    data = Path(shutil.copytree(tiny_root.parent, tmp_path / "data"))
    rows = make_rows(0, 14)
    rows.mel_spec[5, 1, 100, 200] = float("nan")
    write(data / "shards" / "shard-0.h5", rows)
    return data / "splits"


@pytest.mark.slow
def test_a_nan_in_the_data_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_root: Path, tmp_path: Path) -> None:
    root, workdir = with_nan(tiny_root, tmp_path), tmp_path / "run"
    result = train(root, workdir, train__log_every=2, checkpoint__every=1, train__eval_every=0, seed=4)
    assert result.returncode == 1, result.stderr
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: loss or gradient of step ")
    assert ", 5" in message or "[5" in message  # The bad row is among those of the batch.
    bad_step = int(message.split("step ")[1].split()[0])
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == (bad_step - 1 if bad_step > 1 else None)


@pytest.mark.slow
def test_a_nan_between_checkpoints_is_found_and_what_came_before_is_logged(tiny_root: Path, tmp_path: Path) -> None:
    root, workdir = with_nan(tiny_root, tmp_path), tmp_path / "run"
    settings = {"checkpoint__every": 1_000, "train__eval_every": 0, "train__steps": 1_000, "seed": 4}
    result = train(root, workdir, **settings)
    assert result.returncode == 1, result.stderr
    bad_step = int(result.stderr.splitlines()[-1].split("step ")[1].split()[0])
    assert [json.loads(line)["step"] for line in lines(workdir)] == list(range(1, bad_step))


@pytest.mark.slow
def test_a_full_disk_under_the_logs_ends_in_one_line(finished: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = copy_of(finished, tmp_path)
    size = (workdir / "metrics.jsonl").stat().st_size
    result = train_with_file_limit(size + 1_000, tiny_root, workdir, train__steps=60, checkpoint__every=1_000)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "the last good checkpoint is 12" in result.stderr.splitlines()[-1]


def train_with_file_limit(limit: int, root: Path, workdir: Path, **changes: Any) -> subprocess.CompletedProcess:
    """Trains where no file may grow beyond ``limit`` bytes: what a full disk does, without filling one."""
    program = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.argv = sys.argv[1:]\n"
    program += "runpy.run_module('synthjax.train', run_name='__main__', alter_sys=True)"
    arguments = tiny_flags(root, workdir, train__eval_every=0, **changes)
    return subprocess.run(
        [sys.executable, "-c", program, "synthjax.train", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_full_disk_during_a_checkpoint_leaves_the_last_one_good(
    finished: Path, tiny_root: Path, tmp_path: Path
) -> None:
    workdir = copy_of(finished, tmp_path)
    result = train_with_file_limit(100_000, tiny_root, workdir, train__steps=20, train__log_every=100)
    assert result.returncode == 1, result.stderr
    assert "warning: checkpoint 15 could not be written" in result.stderr
    assert "the last good checkpoint is 12" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    # Failed writes may still be under way while the process ends: what they leave is gone when it starts again.
    result = train(tiny_root, workdir, train__steps=14)
    assert result.returncode == 0, result.stderr
    assert "going on from step 12" in result.stderr
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_loader_workers_do_not_outlive_a_killed_run(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with start(tiny_root, workdir, data__workers=2, train__steps=100_000, train__eval_every=0) as process:
        wait_until(lambda: len(lines(workdir)) >= 2, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
    wait_until(lambda: not any(map(is_alive, workers)))


@pytest.mark.slow
def test_sigterm_to_the_whole_process_group_saves_too(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with start(tiny_root, workdir, data__workers=2, train__steps=100_000, checkpoint__every=100_000) as process:
        wait_until(lambda: len(lines(workdir)) >= 3, process)
        for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            member.terminate()
        assert process.wait(timeout=300) == 0
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest == json.loads(lines(workdir)[-1])["step"]
