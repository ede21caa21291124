"""Which config a command line names, and what is told where it names none or a wrong key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.console import config_flag
from data_pipeline.console.cli import Failure
from tests.helpers import REPOSITORY, assert_usage_error

CONFIG = """
import ml_collections

def get_config(arg=""):
    return ml_collections.ConfigDict({"variant": arg, "data": {"batch_size": 1}})
"""
COMMAND = """
from data_pipeline.console import cli, config_flag

config_flag.define(default={default!r})
cli.run(lambda argv: print(config_flag.read().to_json()))
"""


def run(folder: Path, default: str | None, *arguments: str) -> subprocess.CompletedProcess:
    """A command with this default, in a folder with the configs ``here.py`` and, of one variant, ``plain.py``."""
    (folder / "here.py").write_text(CONFIG)
    (folder / "plain.py").write_text(CONFIG.replace('arg=""', "").replace("arg", "''"))
    (folder / "reads.py").write_text("open('/nowhere')")
    command = [sys.executable, "-c", COMMAND.format(default=default), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "variant", "batch_size"),
    [
        ((), "default", 1),
        (("--config.data.batch_size=4",), "default", 4),
        (("--config=here.py:named",), "named", 1),
        (("--config=here.py:named", "--config.data.batch_size=4"), "named", 4),
        (("-config", "here.py:named", "--config.data.batch_size=4"), "named", 4),
    ],
)
def test_the_default_is_read_where_no_config_is_named(
    tmp_path: Path, arguments: tuple[str, ...], variant: str, batch_size: int
) -> None:
    result = run(tmp_path, "here.py:default", *arguments)
    assert result.returncode == 0, result.stderr
    expected: dict[str, Any] = {"variant": variant, "data": {"batch_size": batch_size}}
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize(
    ("default", "arguments", "words"),
    [
        ("here.py", ("--config.data.rows=4",), ("unknown config key 'data.rows'", "there are batch_size")),
        ("here.py", ("--config.data.batch_size=four",), ("data.batch_size",)),
        ("none.py", (), ("there is no config none.py: in . there are here.py, plain.py",)),
        ("none.py", ("--config.data.batch_size=4",), ("none.py",)),
        (None, (), ("--config",)),
        (None, ("--config=reads.py",), ("the config cannot be read", "/nowhere")),
        (None, ("--config",), ("there is no config ''",)),
        (None, ("--config=plain.py:named",), ("plain.py has no variants: leave out ':named'",)),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, default: str | None, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_usage_error(run(tmp_path, default, *arguments), *words)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("flow", "there is no config flow: in configs there are big.py, small.py"),
        ("configs", "there is no config configs: in configs there are big.py, small.py"),
        ("configs/smal.py:x", "there is no config configs/smal.py: in configs there are big.py, small.py"),
        ("", "there is no config '': in configs there are big.py, small.py"),
    ],
)
@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
def test_configs_that_there_are_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    named: str,
    told: str,
    form: str,
) -> None:
    for name in ("configs/small.py", "ours/big.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(CONFIG)
    (tmp_path / "configs" / "variants.py").write_text("def apply(config): ...")
    monkeypatch.setattr(config_flag, "OURS", tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *form.format(named).split(" ", 1), "--config.data.batch_size=4"])
    with pytest.raises(Failure):
        config_flag.define()
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_config_of_ours_is_found_from_any_folder_and_the_callers_own_comes_first(tmp_path: Path) -> None:
    """The caller's folder configs/ is a package, which an import of configs would find instead of ours."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('this package is the caller's')")
    ours = run(tmp_path, None, "--config=configs/flow_20k.py:lr_low", "--config.train.steps=7")
    assert ours.returncode == 0, ours.stderr
    assert (json.loads(ours.stdout)["optim"]["lr"], json.loads(ours.stdout)["train"]["steps"]) == (5e-5, 7)
    (tmp_path / "configs" / "flow_20k.py").write_text(CONFIG)
    own = run(tmp_path, None, "--config=configs/flow_20k.py:lr_low")
    assert json.loads(own.stdout)["variant"] == "lr_low"


@pytest.mark.parametrize("kind", ["flow_mlp", "k_osc:k=8", "render_dexed", "render_surge_xt", "quickstart"])
def test_configs_of_ours_need_no_package_called_configs(tmp_path: Path, kind: str) -> None:
    name, _, variant = kind.partition(":")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('this package is the caller's')")
    result = run(tmp_path, None, f"--config=configs/{name}.py{variant and ':' + variant}")
    assert result.returncode == 0, result.stderr
