"""Prints the requirements of the project and of some of its extras, by pyproject.toml, one a line.

    python scripts/docker/dependencies.py [--without=NAME,NAME] EXTRA...

Images install these before they copy the code, so that a change of the code does not fetch them again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str], without: list[str]) -> list[str]:
    """Returns the requirements of the project and the extras, without the packages that ``without`` names."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [line for line in lines if re.split(r"[^\w.-]", line, maxsplit=1)[0] not in without]


if __name__ == "__main__":
    options = [argument for argument in sys.argv[1:] if argument.startswith("--without=")]
    extras = [argument for argument in sys.argv[1:] if argument not in options]
    without = [name for option in options for name in option.removeprefix("--without=").split(",")]
    print(*requirements(Path("pyproject.toml"), extras, without), sep="\n")
