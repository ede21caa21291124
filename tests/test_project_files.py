"""pyproject.toml and the Makefile speak of all that is there."""

from __future__ import annotations

import ast
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


def test_no_command_has_a_percent_sign_in_its_help() -> None:
    """absl takes it for a place to put the command's name, and prints what is left."""
    sources = [path for root in ("data_pipeline", "scripts", "synthjax") for path in (REPOSITORY / root).rglob("*.py")]
    commands = {path: text for path in sources if "cli.run(" in (text := path.read_text(encoding="utf-8"))}
    assert len(commands) > 20
    told = {path.name for path, text in commands.items() if "%" in (ast.get_docstring(ast.parse(text)) or "")}
    assert not told
