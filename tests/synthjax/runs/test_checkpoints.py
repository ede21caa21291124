"""Checkpoints: which are kept, restoring them, and a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from synthjax.runs.checkpoints import BEST_BY, CheckpointError, Checkpoints
from tests.helpers import preloaded


def state(value: float) -> dict[str, Any]:
    tree = {"layer": {"kernel": jnp.full((3, 4), float(value)), "bias": jnp.arange(4.0) + value}}
    training = {"opt_state": (tree, jnp.zeros((), jnp.int32)), "step": jnp.asarray(int(value), jnp.int32)}
    return {"params": tree, "ema": jax.tree.map(lambda x: x / 2, tree), "training": training}


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def filled(folder: Path, losses: dict[int, float | None], keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step, loss in losses.items():
        checkpoints.save(step, state(step), None if loss is None else {BEST_BY: loss})
    checkpoints.wait()
    return checkpoints


def assert_equal(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_restores_the_state_in_every_bit(tmp_path: Path) -> None:
    with filled(tmp_path, {7: None}) as checkpoints:
        assert_equal(checkpoints.restore(7, abstract(state(0))), state(7))


@pytest.mark.parametrize("weights", ["params", "ema"])
def test_weights_can_be_read_alone(tmp_path: Path, weights: Any) -> None:
    with filled(tmp_path, {7: None}) as checkpoints:
        restored = checkpoints.restore(7, {weights: abstract(state(0)[weights])})
    assert_equal(restored, {weights: state(7)[weights]})


def test_keeps_the_latest_and_the_best(tmp_path: Path) -> None:
    with filled(tmp_path, {1: 0.9, 2: 0.3, 3: 0.5, 4: None, 5: 0.6, 6: None}) as checkpoints:
        assert checkpoints.steps == [2, 5, 6]
        assert checkpoints.best == (2, 0.3)
    with Checkpoints(tmp_path, read_only=True) as again:
        assert (again.latest, again.resolve("latest"), again.resolve("best"), again.resolve("5")) == (6, 6, 2, 5)


def test_without_validation_the_best_is_the_latest(tmp_path: Path) -> None:
    with filled(tmp_path, {1: None, 2: None}) as checkpoints:
        assert checkpoints.best is None
        assert checkpoints.resolve("best") == 2


@pytest.mark.parametrize("name", ["9", "newest", "-1", "1.0", ""])
def test_an_unknown_checkpoint_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    with filled(tmp_path, {1: None, 2: None}) as checkpoints, pytest.raises(UserError, match=r"one of \[1, 2\]"):
        checkpoints.resolve(name)


def test_an_empty_or_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train first"):
        Checkpoints(tmp_path / "none", read_only=True)
    with Checkpoints(tmp_path / "new") as checkpoints, pytest.raises(UserError, match="no checkpoints"):
        checkpoints.resolve("latest")


def test_a_damaged_checkpoint_is_one_error_that_names_it(tmp_path: Path) -> None:
    filled(tmp_path, {3: None}).__exit__()
    for file in (tmp_path / "3").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(b"\0" * 100)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="checkpoint 3 in"):
        checkpoints.restore(3, abstract(state(0)))


def test_a_failed_write_leaves_the_ones_before_it_and_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path, {1: 0.5}) as checkpoints:
        checkpoints.save(2, state(2))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._checkpointer, "wait", _disk_full)
            with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be written: .*No space left"):
                checkpoints.save(3, state(3))
        checkpoints.wait()
        assert_equal(checkpoints.restore(1, abstract(state(0))), state(1))
        assert_equal(checkpoints.restore(3, abstract(state(0))), state(3))


def test_nothing_is_written_where_it_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path, {1: None}) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
            with pytest.raises(CheckpointError, match=r"checkpoint 2 .* MB are free under"):
                checkpoints.save(2, state(2))
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.latest == 3


def _disk_full() -> None:
    raise OSError(28, "No space left on device")


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _emptied_file(path: Path) -> None:
    path.write_bytes(b"")


CUT_SHORT = {
    "an empty folder": _emptied,
    "a tree is missing": lambda folder: shutil.rmtree(folder / "training"),
    "only the first tree": lambda folder: [shutil.rmtree(folder / name) for name in ("params", "ema", "metrics")],
    "no metadata": lambda folder: (folder / "params" / "_METADATA").unlink(),
    "no arrays": lambda folder: shutil.rmtree(folder / "ema" / "d"),
    "arrays not begun": lambda folder: [_emptied_file(file) for file in (folder / "ema" / "d").iterdir()],
    "no manifest": lambda folder: (folder / "training" / "manifest.ocdbt").unlink(),
    "empty metrics": lambda folder: _emptied_file(folder / "metrics" / "metrics"),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    filled(folder, {1: 0.5, 3: 0.4}).__exit__()
    return folder


@pytest.mark.parametrize("damage", CUT_SHORT.values(), ids=CUT_SHORT)
def test_a_checkpoint_that_a_copy_cut_short_is_left_out(
    two: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    damage(folder / "3")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert (checkpoints.steps, checkpoints.resolve("latest"), checkpoints.resolve("best")) == ([1], 1, 1)
        assert checkpoints.best == (1, 0.5)
        assert_equal(checkpoints.restore(1, abstract(state(0))), state(1))
    assert (folder / "3").is_dir()
    assert f"warning: checkpoint {folder / '3'} is left out: files are missing" in capfd.readouterr().err
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.steps == [1]
        assert_equal(checkpoints.restore(1, abstract(state(0))), state(1))
        for step in (2, 3):  # Orbax would keep a broken 3 and remove 2.
            checkpoints.save(step, state(step), {BEST_BY: 0.6})
            checkpoints.wait()
            assert checkpoints.steps == [1, step]
    assert "is left out, is now called 3.incomplete" in capfd.readouterr().err
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps == [1, 3]
    assert not capfd.readouterr().err


def test_half_a_checkpoint_of_a_killed_run_is_not_taken_for_one(tmp_path: Path) -> None:
    filled(tmp_path, {1: None}).__exit__()
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "params").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
        checkpoints.save(2, state(2))
        checkpoints.wait()
        assert_equal(checkpoints.restore(2, abstract(state(0))), state(2))


def test_a_name_that_is_no_utf_8_is_refused_at_the_start(tmp_path: Path) -> None:
    """TensorStore could not write there, which a run would learn with its first checkpoint."""
    with pytest.raises(UserError, match=r"its name is not UTF-8, which checkpoints need: .*PYTHONUTF8=1"):
        Checkpoints(tmp_path / os.fsdecode(b"l\xe4ufe") / "checkpoints")


# As file systems of Windows and of virtual machines have it: they know no fsync of a folder, and others no locks.
NO_FLUSH_OF_FOLDERS = """
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, descriptor);
}
"""
NO_LOCKS = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
static int without_locks(int descriptor, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) {
        errno = ENOLCK;
        return -1;
    }
    return syscall(SYS_fcntl, descriptor, command, argument);
}
#define PASSED_ON(name) int name(int descriptor, int command, ...) { \\
    va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \\
    return without_locks(descriptor, command, argument); }
PASSED_ON(fcntl)
PASSED_ON(fcntl64)
int flock(int descriptor, int operation) { errno = ENOLCK; return -1; }
"""
SAVES = """
import sys
import jax.numpy as jnp
from synthjax.runs.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(7, {"params": {"kernel": jnp.ones(3)}})
    checkpoints.wait()
    print(checkpoints.steps)
"""


@pytest.mark.parametrize(("lacks", "notes"), [(NO_FLUSH_OF_FOLDERS, 1), (NO_LOCKS, 0)])
def test_a_file_system_that_lacks_flushing_or_locks_takes_checkpoints(tmp_path: Path, lacks: str, notes: int) -> None:
    command = [sys.executable, "-c", SAVES, str(tmp_path / "checkpoints")]
    environment = preloaded(lacks, tmp_path)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "[7]\n"), result.stderr
    assert result.stderr.count("cannot be flushed to disk (Invalid argument)") == notes
