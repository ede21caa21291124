"""TPU slices: the exact arguments of every call of gcloud, and a pod of one worker that is a folder here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers import assert_usage_error, wait_until
from tests.scripts.launching import SECRETS, Sandbox, error_lines

ZONE = {"TPU_ZONE": "us-central1-a", "TPU_PROJECT": "project", "TPU_POLL_SECONDS": "0"}
PLACE = ["--zone=us-central1-a", "--project=project"]
NODE = ["compute", "tpus", "tpu-vm"]
REQUEST = ["compute", "tpus", "queued-resources"]
NODE_STATE = [*NODE, "describe", "synthjax", "--format=value(state)", *PLACE]
REQUEST_STATE = [*REQUEST, "describe", "synthjax", "--format=value(state.state)", *PLACE]
FLAGS = ["--config=configs/flow_100k.py", "--workdir=gs://bucket/runs/a"]


def pod(sandbox: Sandbox, *arguments: object, **changes: str) -> subprocess.CompletedProcess:
    return sandbox.run("tpu_pod.sh", *arguments, **ZONE | changes)


def gcloud(sandbox: Sandbox, node: str = "", request: str = "") -> None:
    """``request``: the states of the queued resource, one for each call; the last one stays."""
    states = " ".join(request.split()) or "''"
    sandbox.program(
        "gcloud",
        f"""case "$*" in
        *"tpu-vm describe"*) printf '%s\\n' '{node}' ;;
        *"queued-resources describe"*)
            asked=$(grep -l queued-resources "{sandbox.calls_folder}"/* | xargs grep -l describe | wc -l)
            set -- {states}
            while [ "$asked" -gt 1 ] && [ $# -gt 1 ]; do shift; asked=$((asked - 1)); done
            [ -n "$1" ] || {{ echo 'NOT_FOUND' >&2; exit 1; }}
            echo "$1" ;;
        esac""",
    )


CREATE = [*REQUEST, "create", "synthjax", "--node-id=synthjax", "--accelerator-type=v5litepod-16"]


class TestCreate:
    def test_queued_spot_slice_is_asked_for_and_waited_for(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, request="'' WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
        result = pod(sandbox, "create")
        assert result.returncode == 0, result.stderr
        assert "it costs from now on" in result.stdout
        create = [*CREATE, "--runtime-version=v2-alpha-tpuv5-lite", "--spot", *PLACE]
        assert sandbox.calls("gcloud") == [NODE_STATE, REQUEST_STATE, create, *[REQUEST_STATE] * 3]

    def test_slice_on_demand_of_a_service_account(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, request="'' ACTIVE")
        pod(sandbox, "create", TPU_SPOT="no", TPU_SERVICE_ACCOUNT="me@project")
        create = [*CREATE, "--runtime-version=v2-alpha-tpuv5-lite", "--service-account=me@project", *PLACE]
        assert create in sandbox.calls("gcloud")

    def test_without_a_queue(self, sandbox: Sandbox) -> None:
        gcloud(sandbox)
        assert pod(sandbox, "create", TPU_QUEUED="no", TPU_TYPE="v4-8", TPU_NAME="mine").returncode == 0
        kind = ["--accelerator-type=v4-8", "--version=tpu-ubuntu2204-base", "--spot"]
        assert sandbox.calls("gcloud")[1:] == [[*NODE, "create", "mine", *kind, *PLACE]]

    @pytest.mark.parametrize(
        ("kind", "version"),
        [
            ("v6e-16", "v2-alpha-tpuv6e"),
            ("v5p-8", "v2-alpha-tpuv5"),
            ("v5litepod-4", "v2-alpha-tpuv5-lite"),
            ("v3-8", "tpu-ubuntu2204-base"),
        ],
    )
    def test_software_version_fits_the_type(self, sandbox: Sandbox, kind: str, version: str) -> None:
        gcloud(sandbox)
        pod(sandbox, "create", TPU_QUEUED="no", TPU_TYPE=kind)
        assert f"--version={version}" in sandbox.calls("gcloud")[-1]

    def test_unknown_type_needs_its_version(self, sandbox: Sandbox) -> None:
        gcloud(sandbox)
        assert_usage_error(pod(sandbox, "create", TPU_TYPE="v9-8"), "TPU_TYPE=v9-8", "TPU_RUNTIME")
        assert pod(sandbox, "create", TPU_QUEUED="no", TPU_TYPE="v9-8", TPU_RUNTIME="v9").returncode == 0
        assert "--version=v9" in sandbox.calls("gcloud")[-1]

    def test_slice_that_is_there_stays(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, node="READY", request="ACTIVE")
        result = pod(sandbox, "create")
        assert "is there already" in result.stdout
        assert sandbox.calls("gcloud") == [NODE_STATE]

    @pytest.mark.parametrize("state", ["ACTIVE", "SUSPENDED", "FAILED"])
    def test_preempted_slice_is_made_anew(self, sandbox: Sandbox, state: str) -> None:
        gcloud(sandbox, node="PREEMPTED", request=f"{state} ACTIVE")
        assert pod(sandbox, "create").returncode == 0
        delete = [*REQUEST, "delete", "synthjax", "--force", "--quiet", *PLACE]
        assert sandbox.calls("gcloud")[2] == delete
        assert sandbox.calls("gcloud")[3][:4] == [*REQUEST, "create"]

    def test_preempted_slice_without_a_queue_is_made_anew(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, node="PREEMPTED")
        assert pod(sandbox, "create", TPU_QUEUED="no").returncode == 0
        assert sandbox.calls("gcloud")[1] == [*NODE, "delete", "synthjax", "--quiet", *PLACE]

    def test_request_under_way_is_only_waited_for(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, request="PROVISIONING ACTIVE")
        assert pod(sandbox, "create").returncode == 0
        assert sandbox.calls("gcloud") == [NODE_STATE, REQUEST_STATE, REQUEST_STATE]

    def test_state_that_cannot_be_asked_for_is_no_absence(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud", "printf 'ERROR: no active account.\\nPlease run:\\n' >&2; exit 1")
        for command in ("create", "status"):
            assert_usage_error(pod(sandbox, command), "no active account. Please run:")

    def test_failed_request_is_told(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, request="'' FAILED")
        result = pod(sandbox, "create")
        assert error_lines(result) == ["error: the request for synthjax is FAILED: scripts/tpu_pod.sh status tells why"]

    def test_refused_request_ends_it(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud", 'case "$*" in *" create "*) echo quota >&2; exit 1 ;; esac')
        result = pod(sandbox, "create")
        assert (result.returncode, result.stderr) == (1, "quota\n")


class TestCalls:
    def on(self, worker: str, command: str) -> list[str]:
        return [*NODE, "ssh", "synthjax", f"--worker={worker}", f"--command=cd synthjax && {command}", *PLACE]

    def test_project_is_gclouds_own_if_not_told(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        pod(sandbox, "list", TPU_PROJECT="")
        zone = "--zone=us-central1-a"
        assert sandbox.calls("gcloud") == [[*NODE, "list", zone], [*REQUEST, "list", zone]]

    def test_run(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        assert pod(sandbox, "run", *FLAGS, "--config.note=it's").returncode == 0
        secrets = "set -a && { [ ! -f ../.synthjax-secrets ] || . ../.synthjax-secrets; } && set +a"
        start = "sh scripts/background.sh start train .venv/bin/python -m synthjax.train"
        flags = "'--config=configs/flow_100k.py' '--workdir=gs://bucket/runs/a' '--config.note=it'\\''s' "
        assert sandbox.calls("gcloud") == [self.on("all", f"{secrets} && {start} {flags}")]

    def test_run_needs_a_workdir_that_outlives_the_slice(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        assert_usage_error(pod(sandbox, "run", FLAGS[0], "--workdir=runs/a"), "--workdir=gs://")
        assert_usage_error(pod(sandbox, "run", FLAGS[1]), "--config=")
        assert sandbox.calls() == []

    def test_status(self, sandbox: Sandbox) -> None:
        gcloud(sandbox, node="READY", request="ACTIVE")
        result = pod(sandbox, "status")
        assert result.stdout == "request: ACTIVE\nslice: READY\n"
        status = self.on("all", "sh scripts/background.sh status train")
        assert sandbox.calls("gcloud") == [REQUEST_STATE, NODE_STATE, status]

    def test_status_of_nothing(self, sandbox: Sandbox) -> None:
        gcloud(sandbox)
        assert pod(sandbox, "status", TPU_QUEUED="no").stdout == "slice: none\n"

    def test_logs(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        pod(sandbox, "logs")
        pod(sandbox, "logs", "--follow", "--worker=3")
        assert sandbox.calls("gcloud") == [
            self.on("0", "sh scripts/background.sh logs train"),
            self.on("3", "sh scripts/background.sh logs train --follow"),
        ]

    def test_stop_and_delete(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        for command, queued in (("stop", "yes"), ("delete", "yes"), ("delete", "no")):
            assert pod(sandbox, command, TPU_QUEUED=queued).returncode == 0
        assert sandbox.calls("gcloud") == [
            self.on("all", "sh scripts/background.sh stop train"),
            [*REQUEST, "delete", "synthjax", "--force", "--quiet", *PLACE],
            [*NODE, "delete", "synthjax", "--quiet", *PLACE],
        ]

    def test_wrong_use_is_one_line(self, sandbox: Sandbox) -> None:
        sandbox.program("gcloud")
        assert_usage_error(pod(sandbox), "--help")
        assert_usage_error(pod(sandbox, "destroy"), "destroy")
        assert_usage_error(pod(sandbox, "list", TPU_SPOT="maybe"), "TPU_SPOT", "maybe")
        assert_usage_error(pod(sandbox, "logs", "--colour"), "--colour")

    def test_all_that_is_missing_is_named(self, sandbox: Sandbox) -> None:
        lines = error_lines(sandbox.run("tpu_pod.sh", "create", alone=True))
        assert [words in line for words, line in zip(["gcloud", "TPU_ZONE"], lines, strict=True)] == [True, True]


@pytest.fixture
def worker(sandbox: Sandbox, tmp_path: Path) -> Path:
    """The home folder of a pod's only worker, which gcloud's ssh and scp reach. Its Python is a stub."""
    home = tmp_path / "worker"
    interpreter = home / "synthjax" / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(
        """#!/bin/sh
        case "$*" in *synthjax.train*) ;; *) echo "$*" >>../installed; exit ;; esac
        echo "key: $WANDB_API_KEY"
        printf '[%s]' "$@"; echo
        trap 'echo saved; exit 0' TERM
        while :; do sleep 0.1; done"""
    )
    for path in (interpreter, interpreter.with_name("pip")):
        path.touch()
        path.chmod(0o755)
    sandbox.program(
        "gcloud",
        f"""case "$4" in
        describe) echo READY ;;
        scp) cp -p "$5" "{home}/${{6#*:}}" ;;
        ssh) for word; do case $word in --command=*) cd "{home}" && exec sh -c "${{word#*=}}" ;; esac; done ;;
        esac""",
    )
    root = sandbox.root
    (root / ".gitignore").write_text("runs/\n__pycache__/\n")
    subprocess.run(["git", "init", "--quiet", root], check=True, timeout=60)
    return home


def test_a_run_on_a_worker_from_installation_to_its_end(sandbox: Sandbox, worker: Path, tmp_path: Path) -> None:
    root = sandbox.root
    (root / ".env").write_text("X=not for others\n")
    (root / "new file.txt").write_text("not yet tracked")
    (root / "runs").mkdir()
    (root / "runs" / "large").write_text("ignored")
    (tmp_path / "tmp").mkdir()
    key = {"WANDB_API_KEY": "it's " + SECRETS["WANDB_API_KEY"], "TMPDIR": str(tmp_path / "tmp"), "TPU_QUEUED": "no"}
    result = pod(sandbox, "install", **key)
    assert result.returncode == 0, result.stderr
    there = worker / "synthjax"
    assert (there / "new file.txt").exists()
    assert (there / "scripts" / "launch.sh").exists()
    assert not (there / ".env").exists()
    assert not (there / "runs").exists()
    assert "requirements-tpu.txt" in (worker / "installed").read_text()
    assert (worker / ".synthjax-secrets").stat().st_mode & 0o77 == 0
    assert list((tmp_path / "tmp").iterdir()) == []

    flags = [*FLAGS, "--config.note=it's two words"]
    assert pod(sandbox, "run", *flags, **key).returncode == 0
    wait_until(lambda: "[" in pod(sandbox, "logs", **key).stdout, seconds=60)
    log = pod(sandbox, "logs", **key).stdout.splitlines()
    assert log == [f"key: {key['WANDB_API_KEY']}", "[-m][synthjax.train]" + "".join(f"[{flag}]" for flag in flags)]
    assert_usage_error(pod(sandbox, "run", *flags, **key), "train runs already")
    assert pod(sandbox, "status", **key).stdout.startswith("slice: READY\ntrain runs (process ")
    assert pod(sandbox, "stop", **key).returncode == 0
    assert pod(sandbox, "logs", "--follow", **key).stdout.endswith("saved\n")
    assert pod(sandbox, "status", **key).stdout == "slice: READY\ntrain ended with code 0\n"
    for call in sandbox.calls():
        assert SECRETS["WANDB_API_KEY"] not in " ".join(call)


def test_install_needs_a_clone(sandbox: Sandbox) -> None:
    sandbox.program("gcloud")
    sandbox.program("git", "exit 128")
    assert_usage_error(pod(sandbox, "install"), "git clone")
    assert sandbox.calls("gcloud") == []
