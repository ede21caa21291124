"""The environment of a new machine, with interpreters that only record their arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers import assert_usage_error
from tests.scripts.launching import Sandbox

VENV_PYTHON = ".venv/bin/python -m pip install --quiet"


@pytest.fixture
def machine(sandbox: Sandbox) -> Sandbox:
    """A machine whose Pythons are all too old; pip and Surge XT's installer only record their arguments."""
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        interpreter(sandbox, name, fits=False)
    installer = sandbox.program("install_surge_xt.sh")
    (sandbox.root / "scripts" / "install_surge_xt.sh").write_text(f'"{installer}" "$@"\n')
    return sandbox


def interpreter(sandbox: Sandbox, name: str, fits: bool) -> None:
    """Makes a Python that can make .venv, or is too old for it."""
    made = 'for file in python pip; do cp "$0" .venv/bin/$file; done'
    sandbox.program(
        name,
        f'case "$1 $2" in "-c "*) exit {0 if fits else 1} ;; "-m venv") mkdir -p .venv/bin && {made} ;; esac',
    )


def setup(sandbox: Sandbox, *arguments: str) -> subprocess.CompletedProcess:
    return sandbox.run("setup_vm.sh", *arguments)


def calls(sandbox: Sandbox) -> list[str]:
    """The recorded calls, without those that ask for a version."""
    return [" ".join(call) for call in sandbox.calls() if call[1:2] not in (["-c"], ["--version"])]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_training_is_installed_by_its_requirements(machine: Sandbox, kind: str) -> None:
    interpreter(machine, "python3.12", fits=True)
    result = setup(machine, kind)
    assert result.returncode == 0, result.stderr
    assert calls(machine) == [
        "python3.12 -m venv .venv",
        f"python3.12 -m pip install --quiet --requirement requirements-{kind}.txt",
        "python3.12 -m pip install --quiet --editable .[gcs,s3,wandb]",
    ]


def test_rendering_is_installed_with_surge_xt(machine: Sandbox) -> None:
    interpreter(machine, "python3", fits=True)
    result = setup(machine, "render")
    assert result.returncode == 0, result.stderr
    assert calls(machine) == [
        "python3 -m venv .venv",
        "python3 -m pip install --quiet --editable .[gcs,render,s3]",
        "install_surge_xt.sh",
    ]


def test_libraries_that_surge_xt_lacks_are_fetched(machine: Sandbox, tmp_path: Path) -> None:
    interpreter(machine, "python3", fits=True)
    (machine.root / "scripts" / "install_surge_xt.sh").write_text(f'[ -e "{tmp_path}/libraries" ]\n')
    machine.program("apt-get")
    machine.program("sudo", f'case "$*" in *install*) touch "{tmp_path}/libraries" ;; esac')
    result = setup(machine, "render")
    assert result.returncode == 0, result.stderr
    update, install = [call for call in machine.calls("sudo")]
    assert update == ["apt-get", "update", "-qq"]
    assert {"libxcb-cursor0", "libxkbcommon-x11-0"} <= set(install)


def test_uv_brings_a_python_where_there_is_none(machine: Sandbox) -> None:
    machine.program("uv", 'mkdir -p .venv/bin; for file in python pip; do cp "$0" .venv/bin/$file; done')
    assert setup(machine, "tpu").returncode == 0
    assert calls(machine)[0] == "uv venv --quiet --seed --python 3.12 .venv"


def test_pip_brings_uv_where_there_is_none(machine: Sandbox, tmp_path: Path) -> None:
    brought = tmp_path / "home" / ".local" / "bin" / "uv"
    (tmp_path / "home" / ".local" / "bin").mkdir(parents=True)
    code = 'mkdir -p .venv/bin; for file in python pip; do printf "" >.venv/bin/$file; chmod +x .venv/bin/$file; done'
    machine.program(
        "python3",
        f"""case "$*" in -c*) exit 1 ;; *"install --quiet --user uv")
        printf '#!/bin/sh\\n%s\\n' '{code}' >"{brought}"; chmod +x "{brought}" ;; esac""",
    )
    result = machine.run("setup_vm.sh", "tpu", alone=True)
    assert result.returncode == 0, result.stderr
    assert "python3 -m pip install --quiet --user uv" in calls(machine)
    assert (machine.root / ".venv" / "bin" / "pip").exists()


def test_without_any_it_says_what_to_install(machine: Sandbox) -> None:
    machine.program("python3", "exit 1")
    assert_usage_error(machine.run("setup_vm.sh", "tpu", alone=True), "python3-venv", "uv")


def test_environment_that_is_there_is_kept(machine: Sandbox) -> None:
    interpreter(machine, "python3.12", fits=True)
    setup(machine, "gpu")
    assert setup(machine, "gpu").returncode == 0
    assert calls(machine).count("python3.12 -m venv .venv") == 1


def test_failed_installation_is_no_success(machine: Sandbox) -> None:
    interpreter(machine, "python3.12", fits=True)
    setup(machine, "gpu")
    (machine.root / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    result = setup(machine, "gpu")
    assert (result.returncode, "ready" in result.stdout) == (7, False)


def test_wrong_use_is_one_line(machine: Sandbox) -> None:
    assert_usage_error(setup(machine), "gpu, tpu or render")
    assert_usage_error(setup(machine, "cpu"), "'cpu'")
