"""Which processes train together, read from the environment that whatever started them has left.

JAX finds these clusters as well, but shows a process of Slurm or MPI one GPU alone even where it has its host to
itself, and fails where it is one of one.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob

from data_pipeline.cli import UserError

# As JAX chooses it: the last ephemeral ports, by job, so that jobs on one host do not meet.
PORTS = range(61_440, 65_536)


@dataclass(frozen=True)
class Cluster:
    """The processes of a run: ``coordinator`` host:port of process 0, this process's number and how many there are.

    ``local_index`` of ``local_count``: which of the processes on its own host.
    """

    coordinator: str
    count: int
    index: int
    local_index: int = 0
    local_count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"process {self.index} of {self.count}: the first is 0, the last {self.count - 1}")

    def gpus(self, environment: Mapping[str, str]) -> list[int] | None:
        """Which of the visible GPUs are this process's; None for all: one process a host, or shared out already."""
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if self.local_count == 1 or (len(visible) == 1 and visible[0]):
            return None
        return [self.local_index]


def find(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the environment tells of; None where it tells of none, or of one process.

    Raises:
      UserError: for one that is told of incompletely.
    """
    for look in (_explicit, _slurm, _mpi):
        cluster = look(environment)
        if cluster is not None:
            return cluster if cluster.count > 1 else None
    return None


def on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a TPU VM or pod worker, whose peers JAX asks the TPU runtime for."""
    wanted = environment.get("JAX_PLATFORMS", "tpu")
    devices = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(devices) and importlib.util.find_spec("libtpu") is not None


def _explicit(environment: Mapping[str, str]) -> Cluster | None:
    """Kubernetes and JobSet: the manifest sets the first two, an indexed job the third by itself."""
    if "JAX_NUM_PROCESSES" not in environment:
        return None
    index = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
    coordinator = environment.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(environment, "JAX_NUM_PROCESSES")
    if count > 1 and not coordinator:
        raise UserError("JAX_NUM_PROCESSES above 1 needs JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0")
    return Cluster(coordinator, count, _number(environment, index))


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of srun; a batch script itself has no step."""
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_PROCID" not in environment:
        return None
    job = _number(environment, "SLURM_JOB_ID")
    port = environment.get("JAX_COORDINATOR_PORT", PORTS[job % len(PORTS)])
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    tasks = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = _number(environment, "SLURM_NODEID")
    return Cluster(
        coordinator=f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
        count=count,
        index=_number(environment, "SLURM_PROCID"),
        local_index=_number(environment, "SLURM_LOCALID"),
        local_count=tasks[node] if node < len(tasks) else 1,
    )


def _mpi(environment: Mapping[str, str]) -> Cluster | None:
    """mpirun of Open MPI, or of MPICH and Intel MPI."""
    for names in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if names[0] in environment:
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
        raise UserError(f"the environment's {name}={text!r} is not a number of processes: see scripts/README.md")
    return int(text)


def _first_host(nodes: str) -> str:
    """Of Slurm's ``gpu[007-010,012]-ib,cpu3``: gpu007-ib."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(filter(None, match.groups())) if match else nodes


def _expand_counts(text: str) -> list[int]:
    """Slurm's ``2(x3),1``: 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts
