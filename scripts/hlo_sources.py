"""Which line of the code a compiled program's instruction comes from, by the tables at the head of XLA's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

Table = dict[int, str]
TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


def sources(program: str, folder: Path) -> dict[int, str]:
    """``file.py:line`` by ``stack_frame_id``: of the innermost call in a file below ``folder``, ``""`` without one."""
    tables = _tables(program)
    inside = f"{folder}/"
    found = {}
    for number in tables["StackFrames"]:
        places = _places(number, tables)
        found[number] = next((f"{Path(file).name}:{line}" for file, line in places if file.startswith(inside)), "")
    return found


def _tables(program: str) -> dict[str, Table]:
    """Numbered entries below the names of their tables, all before the first computation."""
    tables: dict[str, Table] = {name: {} for name in TABLES}
    name = ""
    for line in program.splitlines():
        entry = re.match(r"(\d+) (.+)$", line)
        if line in TABLES:
            name = line
        elif name and entry:
            tables[name][int(entry.group(1))] = entry.group(2)
        elif line.endswith("{"):
            break
    return tables


def _places(number: int, tables: dict[str, Table]) -> Iterator[tuple[str, int]]:
    """File and line of a frame and of those that called it, from inside to outside."""
    frames = tables["StackFrames"]
    for _ in frames:  # No more than there are, were they ever numbered in a circle.
        if number not in frames:
            return
        location = tables["FileLocations"][_field("file_location_id", frames[number])]
        yield tables["FileNames"][_field("file_name_id", location)].strip('"'), _field("line", location)
        # XLA prints the numbers of callers one too large: 1 is none.
        number = _field("parent_frame_id", frames[number]) - 1


def _field(name: str, entry: str) -> int:
    value = re.search(rf"\b{name}=(\d+)", entry)
    return int(value.group(1)) if value else 0
