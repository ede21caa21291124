"""The processes of a run, as Kubernetes, Slurm or mpirun describe them in environment variables.

JAX reads these variables too. But it gives a process of Slurm or MPI one GPU only, even if the process has the host to
itself, and it fails if there is only one process.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob

from data_pipeline.console.cli import UserError

# The coordinator's port, chosen by the job's number as JAX does: two jobs on one host then have different ports.
PORTS = range(61_440, 65_536)
INTERACTIVE_STEP = str(2**32 - 6)  # SLURM_STEP_ID in the shell of salloc.
# A name, an IPv4 address, or an IPv6 address in brackets, and a port.
ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class Cluster:
    """The place of this process in a run of several.

    Attributes:
      coordinator: host:port of process 0.
      count: the number of processes.
      index: the number of this process, from 0.
      local_index: its number among the processes of its host, from 0.
      local_count: the number of processes on its host.
    """

    coordinator: str
    count: int
    index: int
    local_index: int = 0
    local_count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"process {self.index} of {self.count}: processes are numbered 0 to {self.count - 1}")
        address = ADDRESS.fullmatch(self.coordinator)
        if self.count > 1 and not (address and 0 < int(address["port"]) < 65_536):
            raise UserError(
                f"the coordinator's address {self.coordinator!r} is not HOST:PORT, such as node1:1234 or [fd00::1]:1234"
            )

    @property
    def host(self) -> str:
        """The coordinator's host: its name, or its address without brackets."""
        address = ADDRESS.fullmatch(self.coordinator)
        return (address["ipv6"] or address["name"]) if address else ""

    @property
    def port(self) -> int:
        """The coordinator's port; 0 if there is no coordinator."""
        address = ADDRESS.fullmatch(self.coordinator)
        return int(address["port"]) if address else 0

    def gpus(self, environment: Mapping[str, str]) -> list[int] | None:
        """The visible GPUs for this process; None for all of them.

        All: if the host has one process, or if the launcher already shows each process a GPU of its own.
        """
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if self.local_count == 1 or (len(visible) == 1 and visible[0]):
            return None
        return [self.local_index]


ALONE = Cluster("", 1, 0)


def find(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the environment variables describe; None if they describe none, or a single process.

    Raises:
      UserError: if a variable is missing or wrong.
    """
    for look in (_explicit, _slurm, _mpi):
        cluster = look(environment)
        if cluster is not None:
            return cluster if cluster.count > 1 else None
    return None


def on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine is a TPU VM or pod worker: there JAX learns of the other processes by itself."""
    wanted = environment.get("JAX_PLATFORMS", "tpu")
    devices = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(devices) and importlib.util.find_spec("libtpu") is not None


def _explicit(environment: Mapping[str, str]) -> Cluster | None:
    """A pod of Kubernetes or JobSet: the manifest sets the JAX_ variables, an indexed job JOB_COMPLETION_INDEX."""
    if not environment.get("JAX_NUM_PROCESSES"):
        return None
    index = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
    coordinator = environment.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(environment, "JAX_NUM_PROCESSES")
    if count == 1:
        return ALONE
    if not coordinator:
        raise UserError("JAX_NUM_PROCESSES above 1 needs JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0")
    return Cluster(coordinator, count, _number(environment, index))


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of srun. A batch script outside of srun has no SLURM_STEP_ variables."""
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(environment.get(name) for name in names) or _in_shell(environment):
        return None
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return ALONE
    job = _number(environment, "SLURM_JOB_ID")
    port = environment.get("JAX_COORDINATOR_PORT", PORTS[job % len(PORTS)])
    tasks = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = _number(environment, "SLURM_NODEID")
    return Cluster(
        coordinator=f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
        count=count,
        index=_number(environment, "SLURM_PROCID"),
        local_index=_number(environment, "SLURM_LOCALID"),
        local_count=tasks[node] if node < len(tasks) else 1,
    )


def _in_shell(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by hand in a shell of an allocation: Slurm then starts no others.

    It is the shell of salloc, or of srun --pty. Slurm gives other tasks no terminal.
    """
    by_hand = environment.get("SLURM_TASK_PID", str(os.getpid())) != str(os.getpid()) and os.isatty(0)
    return by_hand or environment.get("SLURM_STEP_ID") == INTERACTIVE_STEP


def _mpi(environment: Mapping[str, str]) -> Cluster | None:
    """A process of mpirun: Open MPI, MPICH, Intel MPI or PALS."""
    pals = "PMI_LOCAL_RANK" in environment
    local = ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE") if pals else ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    for names in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_SIZE", "PMI_RANK", *local),
    ):
        if environment.get(names[0]) == "1":
            return ALONE
        # Without its rank, the size is left over from another process.
        if environment.get(names[0]) and environment.get(names[1]):
            count, index, local_index, local_count = (_number(environment, name) for name in names)
            coordinator = environment.get("JAX_COORDINATOR_ADDRESS", "")
            if not coordinator and local_count == count:
                coordinator = f"127.0.0.1:{PORTS[-1]}"
            if not coordinator:
                raise UserError("mpirun on several hosts: set JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0 as well")
            return Cluster(coordinator, count, index, local_index, local_count)
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UserError(f"environment variable {name}={text!r} is not a whole number: see docs/clusters.md")
    return int(text)


def _first_host(nodes: str) -> str:
    """The first host of a Slurm node list: gpu007-ib of ``gpu[007-010,012]-ib,cpu3``."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(filter(None, match.groups())) if match else nodes


def _expand_counts(text: str) -> list[int]:
    """The counts of a Slurm list: 2, 2, 2, 1 of ``2(x3),1``."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts
