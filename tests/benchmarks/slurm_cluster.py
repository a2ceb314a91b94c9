"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd, all files in one folder. Needs root.

    python tests/benchmarks/slurm_cluster.py start FOLDER     prints the SLURM_CONF that its commands need
    python tests/benchmarks/slurm_cluster.py stop FOLDER

Debian has all of it in slurm-wlm and munge.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATIENCE = 60  # seconds

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port_of_node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
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
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path) -> Path:
    """Starts a cluster whose files are in `folder`; returns its slurm.conf."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ports = {"port": _free_port(), "port_of_node": _free_port()}
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], folder=folder, **ports))
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(conf)}
    of_munge = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    of_munge |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
    munged = ["munged", "--force", *(f"--{name}={value}" for name, value in of_munge.items())]
    for command in (munged, ["slurmctld"], ["slurmd"]):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True).stdout.split() != [b"idle"]:
        if time.monotonic() > deadline:
            stop(folder)
            raise RuntimeError(f"the cluster did not come up, see {folder}/*.log")
        time.sleep(0.5)
    return conf


def stop(folder: Path) -> None:
    """Ends the jobs and the daemons of the cluster in `folder`."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
    for name in ("slurmd", "slurmctld", "munged"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    time.sleep(1)


if __name__ == "__main__":
    what, where = sys.argv[1:]
    print(start(Path(where).resolve()) if what == "start" else stop(Path(where).resolve()) or "stopped")
