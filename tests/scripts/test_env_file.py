"""Keys from .env: read as data, never run, never shown."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, assert_usage_error

COMMON = REPOSITORY / "scripts" / "common.sh"


def load(folder: Path, content: str, *keys: str, **environment: str) -> subprocess.CompletedProcess:
    """Loads a file with this content and returns the values of the keys, one a line."""
    path = folder / "keys.env"
    path.write_bytes(content.encode())
    show = "; ".join(f"printf '%s\\n' \"${{{key}-unset}}\"" for key in keys)
    return subprocess.run(
        ["sh", "-euc", f'. "{COMMON}"; load_env "{path}"; {show or ":"}'],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=value", "value"),
        ("KEY=", ""),
        ("KEY=a=b==", "a=b=="),
        ("  export KEY=value  ", "value"),
        ('KEY="two words"', "two words"),
        ("KEY='two words'", "two words"),
        ("KEY=two words", "two words"),
        ("KEY=a'b", "a'b"),
        ('KEY="', '"'),
        ("KEY=value\r", "value"),
        ("KEY=a#b", "a#b"),
        ("KEY=*", "*"),
        ("KEY=$HOME", "$HOME"),
        ("KEY=$(touch ran)`touch ran`", "$(touch ran)`touch ran`"),
        ("KEY=a;touch ran", "a;touch ran"),
        ("KEY=\\n", "\\n"),
        ("KEY=%s%d", "%s%d"),
        ("KEY=first\nKEY=second", "first"),
        ("# KEY=no\n\n#KEY=no", "unset"),
    ],
)
def test_values_are_taken_as_they_stand(tmp_path: Path, line: str, value: str) -> None:
    for ending in ("\n", ""):
        result = load(tmp_path, line + ending, "KEY")
        assert (result.returncode, result.stdout, result.stderr) == (0, value + "\n", "")
    assert not (tmp_path / "ran").exists()


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "A=file\nB=file\n", "A", "B", A="mine", B="").stdout == "mine\n\n"


def test_programs_that_follow_get_the_values(tmp_path: Path) -> None:
    path = tmp_path / "keys.env"
    path.write_text("KEY=two words\n")
    code = f'. "{COMMON}"; load_env "{path}"; sh -c \'echo "$KEY"\''
    assert subprocess.run(["sh", "-euc", code], capture_output=True, text=True, timeout=60).stdout == "two words\n"


@pytest.mark.parametrize("line", ["hunter2", "A-B=hunter2", "=hunter2", "1A=hunter2", "A B=hunter2", "$(x)=hunter2"])
def test_other_lines_are_named_by_number_and_not_shown(tmp_path: Path, line: str) -> None:
    result = load(tmp_path, f"A=1\n{line}\n")
    assert_usage_error(result, "keys.env, line 2", "KEY=VALUE")
    assert "hunter2" not in result.stderr


def test_no_file_is_no_keys(tmp_path: Path) -> None:
    code = f'. "{COMMON}"; load_env "{tmp_path}/nowhere"'
    assert subprocess.run(["sh", "-euc", code], capture_output=True, timeout=60).returncode == 0


def test_the_example_names_every_key_that_launchers_read_and_no_other() -> None:
    """Keys that other programs read (clouds, Slurm) are left out."""
    text = (REPOSITORY / ".env.example").read_text()
    example = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE))
    scripts = [REPOSITORY / "scripts" / name for name in ("launch.sh", "tpu_pod.sh", "ovh.sh", "common.sh")]
    scripts.append(REPOSITORY / "scripts" / "slurm" / "train.sbatch")
    lines = [line for path in scripts for line in path.read_text().splitlines()]
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    read = set(re.findall(r"\$\{?([A-Z][A-Z0-9_]*)", code)) | set(re.findall(r"needs_key ([A-Z0-9_]+)", code))
    own = {key for key in read if not key.startswith(("SLURM_", "SRUN_")) and key not in {"HOME", "PATH", "ENV_FILE"}}
    others = {key for key in example if key.startswith(("AWS_", "GOOGLE_"))} | {"SBATCH_PARTITION", "SBATCH_ACCOUNT"}
    assert example - others == own


def test_the_example_can_be_copied_as_it_is(tmp_path: Path) -> None:
    content = (REPOSITORY / ".env.example").read_text()
    assert load(tmp_path, content, "DATA", "TPU_SPOT").stdout == "unset\nunset\n"
    filled = re.sub(r"^#([A-Z][A-Z0-9_]*=)", r"\1", content, flags=re.MULTILINE)
    assert load(tmp_path, filled, "DATA", "TPU_SPOT").stdout == "data/surge_simple\nyes\n"
