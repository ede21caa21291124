"""OVHcloud AI Training: the exact arguments of every call of ovhai."""

from __future__ import annotations

import subprocess

import pytest

from tests.helpers import assert_usage_error
from tests.scripts.launching import SECRETS, Sandbox, error_lines

KEYS = {"OVH_IMAGE": "registry/train:1", "OVH_DATASTORE": "S3GRA"}
CONFIG = "--config=configs/flow_100k.py"
WORKDIR = "--workdir=s3://runs/all/flow"
DATA = "--config.data.root=s3://data/surge"


def ovh(sandbox: Sandbox, *arguments: object, **changes: str) -> subprocess.CompletedProcess:
    sandbox.python()
    return sandbox.run("ovh.sh", *arguments, **KEYS | changes)


def answering(sandbox: Sandbox, answer: str = '{"spec": {"name": "flow"}, "id": "0d91-7"}') -> None:
    sandbox.program("ovhai", f"printf '%s' '{answer}'")


def test_run_mounts_data_and_workdir_and_prints_the_id(sandbox: Sandbox) -> None:
    answering(sandbox)
    result = ovh(sandbox, "run", "flow", CONFIG, DATA, WORKDIR, "--config.note=two words")
    assert (result.returncode, result.stdout, result.stderr) == (0, "0d91-7\n", "")
    assert sandbox.calls("ovhai") == [
        [
            *["job", "run", "--output", "json", "--name", "flow", "--flavor", "l40s-1-gpu", "--gpu", "1"],
            *["--volume", "runs@S3GRA/all/flow:/workspace/run:rw"],
            *["--volume", "data@S3GRA/surge:/workspace/data:ro:cache"],
            *["registry/train:1", "--", "python", "-m", "synthjax.train"],
            *[CONFIG, DATA, WORKDIR, "--config.note=two words"],
            *["--workdir=/workspace/run", "--config.data.root=/workspace/data"],
        ]
    ]


def test_run_without_data_on_another_machine(sandbox: Sandbox) -> None:
    """The k-osc task; a bucket as a whole."""
    answering(sandbox)
    ovh(sandbox, "run", "k-osc", CONFIG, "--workdir", "s3://runs", OVH_FLAVOR="h100-1-gpu", OVH_GPUS="4")
    call = sandbox.calls("ovhai")[0]
    assert call[6:10] == ["--flavor", "h100-1-gpu", "--gpu", "4"]
    assert [call[i + 1] for i, word in enumerate(call) if word == "--volume"] == ["runs@S3GRA/:/workspace/run:rw"]
    assert "--config.data.root=/workspace/data" not in call


def test_key_of_weights_and_biases_comes_from_a_private_bucket(sandbox: Sandbox) -> None:
    answering(sandbox)
    result = ovh(sandbox, "run", "flow", CONFIG, WORKDIR, OVH_SECRETS="private/keys", **SECRETS)
    call = sandbox.calls("ovhai")[0]
    assert "private@S3GRA/keys:/workspace/secrets:ro" in call
    assert call[call.index("--env") + 1] == "NETRC=/workspace/secrets/netrc"
    for value in SECRETS.values():
        assert value not in " ".join(call) + result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["status", "7"], ["get", "7"]),
        (["logs", "7"], ["logs", "7"]),
        (["logs", "7", "--follow"], ["logs", "7", "--follow"]),
        (["save", "7"], ["push-data", "7"]),
        (["stop", "7"], ["stop", "7"]),
        (["list"], ["list"]),
    ],
)
def test_other_commands(sandbox: Sandbox, arguments: list[str], call: list[str]) -> None:
    sandbox.program("ovhai", "echo answer; exit 4")
    result = ovh(sandbox, *arguments, OVH_IMAGE="", OVH_DATASTORE="")
    assert (result.returncode, result.stdout) == (4, "answer\n")
    assert sandbox.calls("ovhai") == [["job", *call]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--help"]),
        (["start"], ["start"]),
        (["run"], ["name for the job"]),
        (["run", CONFIG], ["name for the job"]),
        (["run", "flow", WORKDIR], ["--config="]),
        (["run", "flow", CONFIG, "--workdir=runs/flow"], ["--workdir=s3://"]),
        (["run", "flow", CONFIG, WORKDIR, "--config.data.root=data"], ["--config.data.root=data", "s3://"]),
        (["status"], ["ID", "list"]),
        (["stop", "--all"], ["ID"]),
        (["logs", "7", "--colour"], ["--colour"]),
    ],
)
def test_wrong_use_is_one_line_and_starts_nothing(sandbox: Sandbox, arguments: list[str], words: list[str]) -> None:
    answering(sandbox)
    assert_usage_error(ovh(sandbox, *arguments), *words)
    assert sandbox.calls("ovhai") == []


def test_missing_keys_are_named_a_line_each(sandbox: Sandbox) -> None:
    answering(sandbox)
    lines = error_lines(ovh(sandbox, "run", "flow", CONFIG, WORKDIR, OVH_IMAGE="", OVH_DATASTORE=""))
    assert [line.split()[1] for line in lines] == ["OVH_IMAGE", "OVH_DATASTORE"]


def test_missing_program_is_named(sandbox: Sandbox) -> None:
    result = sandbox.run("ovh.sh", "list", alone=True)
    assert_usage_error(result, "ovhai is missing", "ovhai login")


def test_refusal_is_passed_on(sandbox: Sandbox) -> None:
    sandbox.program("ovhai", "echo 'no such flavor' >&2; exit 3")
    result = ovh(sandbox, "run", "flow", CONFIG, WORKDIR)
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "no such flavor\n")


def test_answer_that_is_no_job_is_told(sandbox: Sandbox) -> None:
    answering(sandbox, "maintenance")
    result = ovh(sandbox, "run", "flow", CONFIG, WORKDIR)
    assert_usage_error(result, "maintenance")
