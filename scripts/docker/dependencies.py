"""Prints what pyproject.toml says that the project and some of its extras depend on, one requirement a line.

    python scripts/docker/dependencies.py [--without=NAME,NAME] EXTRA...

Images install these before they copy the code, so that a changed line of it does not have them fetched again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str], without: list[str]) -> list[str]:
    """The requirements of the project and of the extras, but for those of the named packages."""
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
