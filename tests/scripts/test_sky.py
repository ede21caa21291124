"""SkyPilot's files: valid for SkyPilot, documented, and they start the right commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "scripts" / "sky"
FILES = sorted(FOLDER.glob("*.yaml"))
DESCRIBE = """
import json, sky, sys
task = sky.Task.from_yaml(sys.argv[1])
resources = [[str(one.cloud), one.accelerators, one.use_spot, one.cpus] for one in task.resources]
print(json.dumps({"nodes": task.num_nodes, "envs": task.envs, "secrets": list(task.secrets), "resources": resources}))
"""


def by_name(path: Path) -> str:
    return path.name


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_there_are_three() -> None:
    assert [path.name for path in FILES] == ["render.yaml", "train_gpu.yaml", "train_tpu.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_skypilot_takes_it(path: Path, tmp_path: Path) -> None:
    """Asks SkyPilot in a separate process, which writes to its own home only and sends no usage data."""
    environment = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    result = subprocess.run(
        [sys.executable, "-c", DESCRIBE, path],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    task = yaml.safe_load(result.stdout.splitlines()[-1])
    assert task["nodes"] == 1
    assert task["secrets"] == ([] if path.name == "render.yaml" else ["WANDB_API_KEY"])
    assert all(spot for _, _, spot, _ in task["resources"])


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_every_value_that_can_be_set_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    for section in ("envs", "secrets"):
        for key in read(path.name).get(section, {}):
            line = next(index for index, line in enumerate(lines) if line.startswith(f"  {key}:"))
            before = lines[line - 1]
            assert before.startswith("  #") or key == "SEED", key


@pytest.mark.parametrize("path", FILES, ids=by_name)
@pytest.mark.parametrize("section", ["setup", "run"])
def test_shellcheck_finds_nothing(path: Path, section: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    # FLAGS is split on purpose; every other variable comes from SkyPilot.
    code = "#!/bin/bash\n" + read(path.name)[section]
    result = subprocess.run(
        [shellcheck, "--exclude=SC2154", "-"], input=code, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_setup_asks_for_what_must_be_given(path: Path, tmp_path: Path) -> None:
    task = read(path.name)
    result = start(tmp_path, task["setup"], task["envs"])
    assert result.returncode == 2
    assert re.fullmatch(r"error: give --env (WORKDIR|URL)=gs://BUCKET/FOLDER\n", result.stderr)


def start(folder: Path, code: str, environment: dict[str, Any]) -> subprocess.CompletedProcess:
    """Runs a section as SkyPilot does, with scripts and an interpreter that only print their arguments."""
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    tell = '#!/bin/sh\necho "key ${WANDB_API_KEY-none}"\nprintf \'[%s]\\n\' "$@"\n'
    for name in ("scripts/setup_vm.sh", "scripts/render_to_bucket.sh", ".venv/bin/python"):
        (folder / name).write_text(tell)
        (folder / name).chmod(0o755)
    variables = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        ["bash", "-c", code],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def words(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [line[1:-1] for line in result.stdout.splitlines()[1:]]


NODES = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": 2, "SKYPILOT_NODE_RANK": 1}
GIVEN = {"WORKDIR": "gs://b/run", "DATA": "gs://b/data", "FLAGS": "--config.seed=1 '--config.note=two words'"}


def test_gpu_nodes_find_each_other(tmp_path: Path) -> None:
    task = read("train_gpu.yaml")
    result = start(tmp_path, task["run"], {**task["envs"], **task["secrets"], **NODES, **GIVEN})
    assert words(result) == [
        *["-m", "synthjax.train", "--config=configs/flow_100k.py", "--workdir=gs://b/run"],
        *["--config.data.root=gs://b/data"],
        *["--coordinator=10.0.0.1:8476", "--process_count=2", "--process_index=1"],
        *["--config.seed=1", "--config.note=two words"],
    ]
    assert result.stdout.startswith("key none\n")  # An empty key would be taken for a wrong one.


def test_tpu_hosts_are_told_nothing(tmp_path: Path) -> None:
    task = read("train_tpu.yaml")
    result = start(tmp_path, task["run"], {**task["envs"], "WANDB_API_KEY": "key", **NODES, **GIVEN, "DATA": ""})
    assert words(result) == [
        *["-m", "synthjax.train", "--config=configs/flow_100k.py", "--workdir=gs://b/run"],
        *["--config.seed=1", "--config.note=two words"],
    ]
    assert result.stdout.startswith("key key\n")


def test_render_job_renders_its_range(tmp_path: Path) -> None:
    task = read("render.yaml")
    given = {"URL": "s3://b/shards", "SHARDS": "3-5", "FLAGS": "--verify_each"}
    assert words(start(tmp_path, task["run"], {**task["envs"], **given})) == [
        *["s3://b/shards", "3-5", "--config=configs/render_surge_simple.py"],
        *["--samples_per_shard=10000", "--seed=0", "--verify_each"],
    ]


@pytest.mark.parametrize(
    ("name", "kind"), [("train_gpu.yaml", "gpu"), ("train_tpu.yaml", "tpu"), ("render.yaml", "render")]
)
def test_setup_makes_the_environment(tmp_path: Path, name: str, kind: str) -> None:
    task = read(name)
    given = {"WORKDIR": "gs://b/run", "URL": "gs://b/shards"}
    assert words(start(tmp_path, task["setup"], {**task["envs"], **given})) == [kind]
