"""What devices send one another in a program, by XLA's text of it."""

from __future__ import annotations

import re
from functools import cache

from hlo_text import called, computations, parts, size, times

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def network_bytes(program: str) -> int:
    """Bytes that one device's collective operations yield in a compiled program, as XLA prints it."""
    lines, entry = computations(program)

    @cache
    def count(name: str) -> int:
        return sum(_collective_bytes(line) + times(line) * sum(map(count, called(line))) for line in lines[name])

    return count(entry)


def _collective_bytes(line: str) -> int:
    match = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
    if not match:
        return 0
    yields, kind, started = match.groups()
    # What is only started has its operands beside its results, but for all-reduce, which adds up in place.
    return size(parts(yields)[1]) if started and kind != "all-reduce" and yields.startswith("(") else size(yields)
