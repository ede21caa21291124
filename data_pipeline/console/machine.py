"""Processors, memory and open files that this process may use, on a machine or in a container or job."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62
# Some systems have no hard limit on open files, but do not accept an infinite soft limit.
ENOUGH_FILES = 1 << 20


def usable_cores() -> int:
    """Number of processors that this process may run on, or of the machine if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def raise_limit_of_open_files() -> None:
    """Raises the soft limit of open files to the hard one: a data set may have more shards than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # Some systems accept less than they say.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_freed_memory() -> None:
    """Makes processes that are started from now on keep the memory that they free, with glibc.

    By default glibc returns arrays of a few MB to the system at once. Work that makes them again and again then spends
    much of its time on page faults: rendering and scoring a sound of Dexed takes 26 instead of 20 ms.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(512 << 20))


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    return min([_of_machine(), *map(_of_cgroup, _cgroups())])


def _of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # Not Linux: all memory of the machine.


def _cgroups() -> Iterator[Path]:
    """Folders of the control groups (version 1 or 2) of this process, with all groups above them."""
    yield from (CGROUPS, CGROUPS / "memory")  # In a container these are its own group.
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = CGROUPS / "memory" if controllers == "memory" else CGROUPS
            if controllers in ("", "memory"):
                group = root / path.strip("/")
                yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))


def _of_cgroup(folder: Path) -> int:
    """Memory that a group's limit leaves. Cached files count as free: the system drops them first."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            most = int((folder / limit).read_text(encoding="ascii"))  # "max" stands for no limit: a ValueError.
            taken = int((folder / used).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            return most - taken + int(stat.get(cached, 0))
    return UNLIMITED
