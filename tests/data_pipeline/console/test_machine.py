"""Free memory as Linux, a container's limit, or another system tells it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from data_pipeline.console import machine

GB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    return tmp_path


def test_it_is_about_what_others_measure_here() -> None:
    assert 0 < machine.available_memory() <= psutil.virtual_memory().total


def test_the_machine_tells(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable:   1048576 kB\n")
    assert machine.available_memory() == GB


def test_a_containers_limit_counts_less_what_is_in_use_and_cannot_be_given_up(system: Path) -> None:
    (system / "meminfo").write_text("MemAvailable:   99999999 kB\n")
    (system / "memory.max").write_text(f"{4 * GB}\n")
    (system / "memory.current").write_text(f"{3 * GB}\n")
    (system / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GB}\n")
    assert machine.available_memory() == 3 * GB


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slurm/job_7/step_0", "slurm/job_7", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/slurm/job_7/step_0",
            "memory/slurm/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_a_jobs_limit_counts_wherever_it_is_above_this_process(
    system: Path, line: str, folder: str, names: tuple[str, str, str]
) -> None:
    (system / "meminfo").write_text("MemAvailable:   99999999 kB\n")
    (system / "self").mkdir()
    (system / "self" / "cgroup").write_text(f"9:cpu:/other\n{line}\n")
    group = system / folder
    group.mkdir(parents=True)
    limit, used, cached = names
    (group / limit).write_text(f"{2 * GB}\n")
    (group / used).write_text(f"{GB}\n")
    (group / "memory.stat").write_text(f"{cached} 5\n")
    assert machine.available_memory() == GB + 5


def test_no_limit_is_no_limit(system: Path) -> None:
    (system / "meminfo").write_text("MemAvailable:   1048576 kB\n")
    (system / "memory.max").write_text("max\n")
    assert machine.available_memory() == GB


def test_where_nobody_tells_all_memory_counts(system: Path) -> None:
    assert machine.available_memory() == psutil.virtual_memory().total
