"""A Slurm of its own on this machine: munged, slurmctld and slurmd on the loopback device, in a folder of their own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
CPUS = 2
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
KillWait=60
SlurmctldTimeout=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=loopback Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; yields the environment that its commands need, and ends what it started, also its jobs.

    Raises:
        RuntimeError: Where a program is missing, or the node does not come up within a minute.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(f"needs root and Debian's slurm-wlm and munge (missing: {', '.join(missing) or 'root'})")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(2)
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=ports, folder=folder, cpus=CPUS))
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
    munge = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file", "key-file")
    ]
    munge += [f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    with ExitStack() as started:
        for program, *options in (("munged", *munge), ("slurmctld", "-D"), ("slurmd", "-D")):
            log = started.enter_context((folder / f"{program}.txt").open("w"))
            process = subprocess.Popen([program, *options], env=environment, stdout=log, stderr=log)
            started.callback(_end, process)
            time.sleep(1)
        started.callback(_cancel_all, environment)
        until = time.monotonic() + 60
        while "idle" not in asked("sinfo", "-h", "-o", "%T", environment=environment):
            if time.monotonic() > until:
                texts = [f"{path.name}: {path.read_text()[-800:]}" for path in folder.glob("*.txt")]
                raise RuntimeError("the node does not come up; " + "\n".join(texts))
            time.sleep(1)
        yield environment


def asked(*command: str, environment: dict[str, str]) -> str:
    """What a command of Slurm answers."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _cancel_all(environment: dict[str, str]) -> None:
    asked("scancel", "--user=root", environment=environment)
    until = time.monotonic() + 90
    while asked("squeue", "-h", environment=environment).strip() and time.monotonic() < until:
        time.sleep(1)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
