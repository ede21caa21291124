"""The processes of a run as launchers describe them in environment variables."""

from __future__ import annotations

import os

import pytest

from data_pipeline.console.cli import UserError
from synthjax.cluster.launchers import Cluster, find, on_tpu

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[007-010]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "JAX_COORDINATOR_ADDRESS": "head:1234",
}
INTEL_MPI = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PALS = {"PMI_SIZE": "2", "PMI_RANK": "1", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2", "PALS_RANKID": "1"}
JOBSET = {"JAX_COORDINATOR_ADDRESS": "train-0-0.train:8080", "JAX_NUM_PROCESSES": "8", "JOB_COMPLETION_INDEX": "5"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        (SLURM, Cluster(f"gpu007:{61440 + 70001 % 4096}", 4, 2)),
        (SLURM | {"JAX_COORDINATOR_PORT": "999"}, Cluster("gpu007:999", 4, 2)),
        (OPEN_MPI, Cluster("head:1234", 4, 3, 1, 2)),
        (INTEL_MPI, Cluster("127.0.0.1:65535", 2, 1, 1, 2)),
        (PALS, Cluster("127.0.0.1:65535", 2, 1, 1, 2)),
        (JOBSET, Cluster("train-0-0.train:8080", 8, 5)),
        (JOBSET | {"JAX_PROCESS_ID": "6"}, Cluster("train-0-0.train:8080", 8, 6)),
    ],
)
def test_clusters_are_found(environment: dict[str, str], cluster: Cluster) -> None:
    assert find(environment) == cluster


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[01,07-15]-ib,x", "node01-ib"),
        ("a-b.c", "a-b.c"),
    ],
)
def test_slurm_host_lists(nodes: str, host: str) -> None:
    cluster = find(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert cluster is not None
    assert cluster.coordinator.split(":")[0] == host


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # A batch script, outside srun.
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"},
        {"PMI_SIZE": "1", "PMI_RANK": "0", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
        # Half of what the launcher sets.
        {"PMI_SIZE": "1"},
        {"PMI_SIZE": "1", "PMI_RANK": "0", "PALS_RANKID": "0"},
        {"PMI_SIZE": "4"},
        {"PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"},
        {"SLURM_STEP_NODELIST": "gpu1", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NODELIST": "gpu1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"JAX_NUM_PROCESSES": "1"},
        {"JAX_NUM_PROCESSES": ""},
        # The shell of salloc.
        SLURM | {"SLURM_STEP_ID": "4294967290"},
    ],
)
def test_one_process_is_alone(environment: dict[str, str]) -> None:
    assert find(environment) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_the_shell_of_srun_pty_is_no_run(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Only a shell has a terminal; the task of srun itself may have one too."""
    monkeypatch.setattr("os.isatty", lambda _: terminal)
    assert (find(SLURM | {"SLURM_TASK_PID": str(os.getppid())}) is None) == terminal
    assert find(SLURM | {"SLURM_TASK_PID": str(os.getpid())}) is not None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (SLURM | {"SLURM_PROCID": "first"}, ["SLURM_PROCID='first'"]),
        (SLURM | {"SLURM_PROCID": "4"}, ["process 4 of 4"]),
        ({"JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "0"}, ["JAX_COORDINATOR_ADDRESS"]),
        (JOBSET | {"JOB_COMPLETION_INDEX": ""}, ["JOB_COMPLETION_INDEX"]),
        ({**OPEN_MPI, "JAX_COORDINATOR_ADDRESS": ""}, ["several hosts", "JAX_COORDINATOR_ADDRESS"]),
    ],
)
def test_incomplete_clusters_are_refused(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find(environment)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("local_count", "visible", "gpus"),
    [(1, "0,1,2,3", None), (1, "", None), (4, "0,1,2,3", [2]), (4, "", [2]), (4, "3", None)],
)
def test_gpus_are_shared_out_once(local_count: int, visible: str, gpus: list[int] | None) -> None:
    cluster = Cluster("head:1", 8, 6, 2, local_count)
    assert cluster.gpus({"CUDA_VISIBLE_DEVICES": visible} if visible else {}) == gpus


@pytest.mark.parametrize(
    "address",
    ["", "node1", "node1:", ":1234", "http://node1:1234", "node1:1234/", "node1:abc", "node1:0", "node1:70000",
     "fd00::1:1234", "node 1:1234", "node1:1234,node2:1234", "node1:1234\n"],
)  # fmt: skip
def test_an_address_that_is_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is not HOST:PORT, such as node1:1234"):
        Cluster(address, 2, 0)


@pytest.mark.parametrize(
    ("address", "host"),
    [("node_1.x-y:1234", "node_1.x-y"), ("10.0.0.1:65535", "10.0.0.1"), ("[fd00::1]:1234", "fd00::1")],
)
def test_the_host_of_the_coordinator(address: str, host: str) -> None:
    assert Cluster(address, 2, 0).host == host


def test_tasks_of_the_own_node_are_counted() -> None:
    uneven = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),4", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}
    cluster = find(uneven)
    assert cluster is not None
    assert cluster.local_count == 4


def test_this_machine_is_no_tpu() -> None:
    assert not on_tpu({})
