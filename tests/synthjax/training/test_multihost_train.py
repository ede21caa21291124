"""Several processes on one machine (gloo collectives) are one run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from synthjax.runs.checkpoints import Checkpoints
from tests.helpers import REPOSITORY, run_cli, tiny_flags
from tests.synthjax.multihost import SECONDS, ends, finish, records, start_together

# So that a run to be continued does the same steps as one that knows its end.
CONSTANT = {"optim__final_lr": 1e-4}


@pytest.fixture(scope="module")
def alone(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    result = run_cli("synthjax.train", *tiny_flags(tiny_root, workdir, **CONSTANT), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return workdir


def assert_same_figures(one: Path, other: Path) -> None:
    expected, found = records(one), records(other)
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for first, second in zip(expected, found, strict=True):
        assert first.keys() == second.keys()
        np.testing.assert_allclose(second["loss"], first["loss"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(list(second.values()), list(first.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "changes"),
    [
        (2, 1, {}),
        (2, 1, {"data__cache": "host"}),
        (2, 1, {"mesh__fsdp": True, "data__cache": "device"}),
        (2, 2, {"mesh__model": 2, "data__cache": "device"}),
        (2, 2, {"mesh__slices": 2, "mesh__fsdp": True, "train__accumulate": 2, "data__cache": "device"}),
        (4, 1, {}),
    ],
)
def test_multihost_training_gives_the_figures_of_one_process(
    alone: Path, tiny_root: Path, tmp_path: Path, processes: int, devices: int, changes: dict[str, object]
) -> None:
    workdir = tmp_path / "run"
    finish(start_together("synthjax.train", tiny_flags(tiny_root, workdir, **CONSTANT, **changes), processes, devices))
    assert_same_figures(alone, workdir)


@pytest.mark.slow
def test_multihost_runs_restore_each_others_checkpoints(alone: Path, tiny_root: Path, tmp_path: Path) -> None:
    """A run that ends three times and goes on with another number of processes is the run of one process."""
    workdir = tmp_path / "run"
    for processes, steps in ((2, 3), (4, 6), (1, 9), (2, 12)):
        flags = tiny_flags(tiny_root, workdir, **CONSTANT, train__steps=steps)
        if processes == 1:
            assert run_cli("synthjax.train", *flags, cwd=REPOSITORY).returncode == 0
        else:
            finish(start_together("synthjax.train", flags, processes))
    found = records(workdir)
    # The last step of every part is validated.
    assert {key for key in found[2] if key.startswith("val/")}
    for first, second in zip(records(alone), found, strict=True):
        np.testing.assert_allclose(second["loss"], first["loss"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(list(found[-1].values()), list(records(alone)[-1].values()), rtol=1e-4, atol=1e-5)


def wait_for_records(workdir: Path, count: int, processes: list[subprocess.Popen]) -> None:
    """Until so many lines are in the log; else nothing is left running."""
    metrics, end = workdir / "metrics.jsonl", time.monotonic() + SECONDS
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            pytest.fail(f"no {count} steps: {ends(processes, 1)}")
        time.sleep(0.05)


@pytest.mark.slow
def test_multihost_processes_of_one_machine_hold_the_data_once(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    changes = {"data__cache": "host", "train__steps": 100_000, "train__eval_every": 0}
    processes = start_together("synthjax.train", tiny_flags(tiny_root, workdir, **changes))
    wait_for_records(workdir, 3, processes)
    maps = [Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines() for process in processes]
    # Addresses, rights, offset, device, number of the file, its name.
    files = [{line.split()[4] for line in lines if "/memfd:synthjax" in line} for lines in maps]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    finish(processes)
    assert len(files[0]) == 2  # Spectrograms and rows.
    assert files[0] == files[1]


@pytest.mark.slow
def test_multihost_sigterm_to_one_saves_all(tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    flags = tiny_flags(tiny_root, workdir, train__steps=100_000, checkpoint__every=100_000, train__eval_every=0)
    processes = start_together("synthjax.train", flags)
    wait_for_records(workdir, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [records(workdir)[-1]["step"]]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_multihost_kill_ends_the_others_and_the_restart_is_exact(
    alone: Path, tiny_root: Path, tmp_path: Path, killed: int
) -> None:
    workdir = tmp_path / "run"
    flags = [*tiny_flags(tiny_root, workdir, train__steps=100_000, train__eval_every=0), "--heartbeat_seconds=60"]
    processes = start_together("synthjax.train", flags)
    wait_for_records(workdir, 4, processes)
    processes[killed].kill()
    codes = [code for code, _ in ends(processes)]
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] not in (0, -signal.SIGKILL)
    # From the run's own checkpoints a whole one goes on as if nothing had been.
    reached = int(records(workdir)[-1]["step"])
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    more = [*tiny_flags(tiny_root, workdir, train__steps=reached + 4, train__eval_every=0)]
    finish(start_together("synthjax.train", more))
    again = [*tiny_flags(tiny_root, copy, train__steps=reached + 4, train__eval_every=0)]
    assert run_cli("synthjax.train", *again, cwd=REPOSITORY).returncode == 0
    assert_same_figures(copy, workdir)


@pytest.mark.slow
def test_multihost_error_of_one_process_is_printed_by_all(tiny_root: Path, tmp_path: Path) -> None:
    """The data set of one host is another one."""
    flags = tiny_flags(tiny_root, tmp_path / "run")
    processes = start_together("synthjax.train", flags, each={1: [f"--config.data.root={tmp_path / 'nowhere'}"]})
    told = ends(processes)
    assert [code for code, _ in told] == [2, 2]
    assert all("no train.h5 under" in line and "nowhere" in line for _, line in told)
    assert "process 1: no train.h5" in told[0][1]
    assert not any("Traceback" in text for _, text in told)


def test_multihost_processes_must_agree(tiny_root: Path, tmp_path: Path) -> None:
    processes = start_together(
        "synthjax.train", tiny_flags(tiny_root, tmp_path / "run"), each={1: ["--config.optim.lr=0.5"]}
    )
    for code, told in ends(processes):
        assert code == 2
        assert "the processes disagree about the config" in told


@pytest.mark.slow
def test_multihost_process_that_never_comes_is_not_waited_for_forever(tiny_root: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags(tiny_root, tmp_path / "run"), "--join_seconds=3"]
    code, told = ends(start_together("synthjax.train", flags, absent=1))[0]
    assert code == 2
    assert "process 0 of 2 joins the others at 127.0.0.1" in told
    assert told.endswith("within 3 s: these processes did not come: 1\n")


@pytest.mark.slow
def test_multihost_processes_of_one_host_share_its_memory(tiny_root: Path, tmp_path: Path) -> None:
    """A batch of four rows takes 0.8 MB, and one process with one worker eight batches."""
    mount = "mount -t tmpfs -o size=10m tmpfs /dev/shm"
    within = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    flags = tiny_flags(tiny_root, tmp_path / "run", data__workers=1)
    for code, told in ends(start_together("synthjax.train", flags, within=within)):
        assert code == 2
        assert "data.workers=1 in 2 processes of this host needs 12 MB in /dev/shm, which has 10 MB" in told
