"""pyproject.toml and the Makefile speak of all that is there."""

from __future__ import annotations

import re
import subprocess
import tomllib

from tests.helpers import REPOSITORY


def test_every_folder_of_a_package_is_declared() -> None:
    """Setuptools warns, at every installation, of one that is not."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name.replace(".", "/") for name in declared["packages"]}
    files = [path for root in ("configs", "data_pipeline", "synthjax") for path in (REPOSITORY / root).rglob("*.*")]
    folders = {str(path.parent.relative_to(REPOSITORY)) for path in files if "__pycache__" not in path.parts}
    assert packages == folders


def test_help_lists_every_documented_target() -> None:
    documented = re.findall(r"^(\S+):.* ## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # Within make test, it would tell where it is.
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert sorted(line.split()[0] for line in result.stdout.splitlines()) == sorted(documented)
    assert ".venv/dev" in documented
