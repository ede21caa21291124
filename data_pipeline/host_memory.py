"""How much memory this machine, or the container or job that this process runs in, has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62


def available_memory() -> int:
    """Bytes that can still be taken without swapping, as far as the system tells."""
    return min([_of_machine(), *map(_of_cgroup, _cgroups())])


def _of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # Not Linux: what there is at all.


def _cgroups() -> Iterator[Path]:
    """Folders of the control groups that hold this process, of either version, with all that hold these."""
    yield from (CGROUPS, CGROUPS / "memory")  # A container sees its own as the first.
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = CGROUPS / "memory" if controllers == "memory" else CGROUPS
            if controllers in ("", "memory"):
                group = root / path.strip("/")
                yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))


def _of_cgroup(folder: Path) -> int:
    """What a limit leaves; files that were read are given up before a process is refused."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            most = int((folder / limit).read_text(encoding="ascii"))  # "max" where there is none.
            taken = int((folder / used).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            return most - taken + int(stat.get(cached, 0))
    return UNLIMITED
