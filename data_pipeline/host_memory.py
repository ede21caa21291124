"""How much memory this machine, or the container or job that this process runs in, has left."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can still be taken without swapping, as far as the system tells."""
    return min(_of_machine(), _of_cgroup())


def _of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # Not Linux: what there is at all.


def _of_cgroup() -> int:
    """What a container's or a job's limit leaves; files that were read are given up before a process is refused."""
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))  # "max" where there is none.
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return limit - used + int(cached.get("inactive_file", 0))
    return 1 << 62
