"""XLA's compiled programs as it prints them (``compiled.as_text()``): computations, what they call, sizes of arrays."""

from __future__ import annotations

import math
import re

BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16},
}


def computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the one that the program begins with."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header.group(2)
            lines[name] = []
            entry = name if header.group(1) else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def called(line: str) -> list[str]:
    """Computations that an instruction runs; what it applies to elements (to_apply of a reduction) moves nothing."""
    branches = re.findall(r"branch_computations=\{([^}]*)\}", line)
    applied = "|to_apply" if " call(" in line else ""
    return re.findall(rf"(?:body|calls|true_computation|false_computation{applied})=%([\w.\-]+)", line) + [
        name for listed in branches for name in re.findall(r"%([\w.\-]+)", listed)
    ]


def times(line: str) -> int:
    """How often an instruction runs what it calls: once, unless it is a loop whose turns XLA knows."""
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    return int(trips.group(1)) if trips else 1


def arrays(types: str) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each array of a type, which may be a tuple."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return [(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in found]


def size(types: str) -> int:
    """Bytes of all arrays of a type."""
    return sum(BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in arrays(types))


def parts(types: str) -> list[str]:
    """The types that a tuple's type is made of."""
    found, depth = [""], 0
    for character in types[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [one.strip() for one in found]
