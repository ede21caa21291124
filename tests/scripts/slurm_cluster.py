"""A Slurm cluster of this machine alone, for tests: munged, slurmctld and one slurmd in a folder of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
# The processors that jobs share, whatever the machine has.
CPUS = 4

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class SlurmCluster:
    """Runs Slurm's commands against the cluster in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: object, **environment: str) -> str:
        """Returns the output of a Slurm command."""
        result = subprocess.run(
            [str(part) for part in command],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def submit(self, *arguments: object, cwd: Path, **environment: str) -> str:
        """Submits a batch script from the folder ``cwd``; returns the job's number."""
        return self.run("sbatch", "--parsable", f"--chdir={cwd}", *arguments, **environment).strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """Returns Slurm's record of a job, or of the tasks of an array."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in shown.splitlines()]

    def states(self, job: str) -> list[str]:
        return [fields["JobState"] for fields in self.jobs(job)]

    def wait_for(self, job: str, *states: str, seconds: float = 600) -> None:
        """Returns when the job, or every task of the array, is in one of the states."""
        wait_until(lambda: set(self.states(job)) <= set(states), seconds, lambda: f"{self.jobs(job)}\n{self.logs()}")

    def batch_signal(self, job: str, name: str) -> None:
        """Sends the signal that --signal=B:NAME@SECONDS sends near the time limit."""
        self.run("scancel", f"--signal={name}", "--batch", job)

    def hurry(self, job: str) -> None:
        """Starts a requeued job at once; Slurm would let it wait for two minutes."""

        def is_back() -> bool:
            return all(fields["JobState"] == "PENDING" and fields["Restarts"] != "0" for fields in self.jobs(job))

        wait_until(is_back, 300, self.logs)
        time.sleep(5)  # Slurm's daemon is still clearing away the script of before, by name.
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(self.folder.glob("*.log")))


def wait_until(holds: Callable[[], bool], seconds: float, story: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {story()}"
        time.sleep(0.2)


def missing_daemons() -> list[str]:
    return [name for name in DAEMONS if find(name) is None]


def find(daemon: str) -> str | None:
    """Finds a daemon; it is often not in an ordinary user's PATH."""
    return shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def slurm_cluster() -> Generator[SlurmCluster, None, None]:
    """A running cluster; all its processes end with the test."""
    # Not pytest's folder: sockets have short paths, and munge wants one that others may look into.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    daemons: list[subprocess.Popen] = []
    try:
        _start(cluster, daemons)
        yield cluster
        subprocess.run(["scancel", "--signal=KILL", "--full", f"--user={os.getuid()}"], env=cluster.environment)
    finally:
        for daemon in reversed(daemons):
            _end(daemon)
        shutil.rmtree(folder, ignore_errors=True)


def _start(cluster: SlurmCluster, daemons: list[subprocess.Popen]) -> None:
    folder = cluster.folder
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ctld_port, slurmd_port = _free_ports(2)
    (folder / "slurm.conf").write_text(
        CONF.format(
            folder=folder,
            host=socket.gethostname().split(".")[0],
            user=_user(),
            ctld_port=ctld_port,
            slurmd_port=slurmd_port,
            cpus=CPUS,
        )
    )

    def start(name: str, *arguments: object) -> None:
        with (folder / f"{name}.out.log").open("wb") as log:
            command = [find(name) or name, *map(str, arguments)]
            daemons.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))

    # --force: whoever may write to /tmp could otherwise not start it there.
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    start("munged", "--foreground", "--force", *(f"--{option}={folder / file}" for option, file in files.items()))
    wait_until((folder / "munge.socket").exists, 30, cluster.logs)
    start("slurmctld", "-D")
    start("slurmd", "-D")
    wait_until(lambda: _answers(cluster), 60, cluster.logs)


def _answers(cluster: SlurmCluster) -> bool:
    shown = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True)
    return shown.stdout.strip() == b"idle"


def _end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
