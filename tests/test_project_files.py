"""pyproject.toml installs every file of the packages; the Makefile and the commands explain themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from fnmatch import fnmatch

from tests.helpers import REPOSITORY


def test_every_file_of_a_package_is_installed() -> None:
    """Setuptools takes Python files by itself; other files must match a pattern in package-data."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert declared["packages"]["find"]["include"] == ["synthjax*", "data_pipeline*"]
    # A wheel has configs/ as synthjax.configs. A package called configs would hide a user's own, or be hidden by it.
    assert (REPOSITORY / "synthjax" / "configs").resolve() == REPOSITORY / "configs"
    for root in ("configs", "data_pipeline", "synthjax"):
        for file in (REPOSITORY / root).rglob("*.*"):
            if "__pycache__" in file.parts:
                continue
            folder = ".".join(file.parent.relative_to(REPOSITORY).parts)
            patterns = declared["package-data"].get(folder, [])
            assert file.suffix == ".py" or any(fnmatch(file.name, pattern) for pattern in patterns), file


def test_help_lists_every_documented_target() -> None:
    documented = re.findall(r"^(\S+):.* ## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # Within make test, make would print its folder.
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert sorted(line.split()[0] for line in result.stdout.splitlines()) == sorted(documented)
    assert ".venv/dev" in documented


def test_no_command_has_a_percent_sign_in_its_help() -> None:
    """absl replaces a percent sign in a help text by the command's name."""
    sources = [path for root in ("data_pipeline", "scripts", "synthjax") for path in (REPOSITORY / root).rglob("*.py")]
    commands = {path: text for path in sources if "__main__" in (text := path.read_text(encoding="utf-8"))}
    assert len(commands) > 20
    broken = {path.name for path, text in commands.items() if "%" in (ast.get_docstring(ast.parse(text)) or "")}
    assert not broken
