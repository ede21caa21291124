"""For tests of the launchers: a copy of the scripts, and programs that record their arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import REPOSITORY

# Programs of the targets, some of which this machine may have.
TARGETS = {"docker", "gcloud", "ovhai", "sbatch", "scancel", "sky", "squeue"}
SECRETS = {
    "WANDB_API_KEY": "wandb-secret-0123456789",
    "AWS_ACCESS_KEY_ID": "aws-id-secret-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789",
}
# Keys of the launchers, which the tests' own environment must not bring in.
KEYS = ("DATA", "RUNS", "PYTHON", "TPU_", "OVH_", "SKY_", "SBATCH_", "WANDB_", "AWS_", "SURGE_", "SLURM_", "SCRATCH")

NOTE_CALL = """\
#!/bin/sh
number=$(ls "{calls}" | wc -l)
call="{calls}/$(printf %04d "$number")-{name}"
for word; do printf '%s\\0' "$word"; done >"$call"
"""


@dataclass
class Sandbox:
    """A repository with the real scripts, and a folder of programs that is first in PATH."""

    root: Path
    programs: Path
    calls_folder: Path

    @classmethod
    def create(cls, folder: Path) -> Sandbox:
        sandbox = cls(folder / "repository", folder / "programs", folder / "calls")
        for path in (sandbox.root, sandbox.programs, sandbox.calls_folder):
            path.mkdir()
        shutil.copytree(REPOSITORY / "scripts", sandbox.root / "scripts")
        for name in ("configs", "data_pipeline", "synthjax"):
            (sandbox.root / name).symlink_to(REPOSITORY / name)
        return sandbox

    def program(self, name: str, code: str = "") -> Path:
        """Makes a program that records its arguments, then runs ``code``."""
        path = self.programs / name
        path.write_text(NOTE_CALL.format(calls=self.calls_folder, name=name) + code + "\n")
        path.chmod(0o755)
        return path

    def python(self, data: str = "", files: str = "train.h5 stats.npz", check: int = 0) -> Path:
        """Makes an interpreter that reports the data set at ``data`` with ``files``, and passes the check or not."""
        lines = f"'{data}' surge_simple" if data else "''"
        listing = " ".join(f"'           12 {name}'" for name in files.split())
        return self.program(
            "python",
            f"""case "$*" in
            scripts/data_of_run.py*) printf '%s\\n' {lines} ;;
            "-m data_pipeline.storage ls"*) printf '%s\\n' {listing} ;;
            "-m data_pipeline.check"*) exit {check} ;;
            -c*) exec {sys.executable} "$@" ;;
            esac""",
        )

    def environment(self, alone: bool = False, **changes: str) -> dict[str, str]:
        """Runs a script. With ``alone``, PATH has no programs of targets except those made here."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(KEYS)}
        path = f"{self.programs}:{self._common_programs() if alone else inherited['PATH']}"
        home = self.programs.parent / "home"
        home.mkdir(exist_ok=True)
        fixed = {"PATH": path, "HOME": str(home), "ENV_FILE": "/dev/null", "PYTHON": str(self.programs / "python")}
        return inherited | fixed | changes

    def _common_programs(self) -> Path:
        folder = self.programs.parent / "common"
        if not folder.exists():
            folder.mkdir()
            for program in Path("/usr/bin").iterdir():
                if program.name not in TARGETS:
                    (folder / program.name).symlink_to(program)
        return folder

    def run(self, script: str, *arguments: object, alone: bool = False, **changes: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", self.root / "scripts" / script, *map(str, arguments)],
            cwd=self.root.parent,
            env=self.environment(alone, **changes),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def calls(self, name: str | None = None) -> list[list[str]]:
        """The arguments of every call in order: of one program, or of all with the program's name first."""
        told = []
        for path in sorted(self.calls_folder.iterdir()):
            program = path.name.split("-", 1)[1]
            arguments = path.read_text().split("\0")[:-1]
            if name is None:
                told.append([program, *arguments])
            elif program == name:
                told.append(arguments)
        return told

    def everything_written(self) -> str:
        """The text of all files of the repository and of the records."""
        files = [path for path in self.root.parent.rglob("*") if path.is_file() and not path.is_symlink()]
        return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def said(result: subprocess.CompletedProcess) -> dict[str, str]:
    """The lines that a launcher prints at its end: job, watch, status, stop."""
    lines = [line.split(":", 1) for line in result.stdout.splitlines() if ":" in line]
    return {key: value.strip() for key, value in lines}


def error_lines(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 2, result.stdout + result.stderr
    return result.stderr.splitlines()
