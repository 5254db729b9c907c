"""A Slurm cluster of one node, on this machine: `SlurmCluster`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge"
_PATIENCE_S = 120
_CONF = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={home}/run/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/run/ctld.pid
SlurmdPidFile={home}/run/d.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=sched_interval=1,sched_min_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
KillWait=1
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:2
PartitionName=p Nodes=ALL Default=YES State=UP DefMemPerCPU=500
"""


class SlurmCluster:
    """`with` starts it, on free ports of the loopback interface, with all its files in `home`; `environment` is what
    its commands need."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node = socket.gethostname().partition(".")[0]
        self.environment = {"SLURM_CONF": str(home / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name in ("state", "spool", "log", "run"):
            (self.home / name).mkdir(mode=0o755, parents=True)
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = _CONF.format(host=self.node, home=self.home, ctld_port=_free_port(), slurmd_port=_free_port())
        (self.home / "slurm.conf").write_text(conf)
        (self.home / "gres.conf").write_text(f"NodeName={self.node} Name=gpu File=/dev/tty[0-1]\n")
        try:
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.home}/run/munge.sock",
                f"--pid-file={self.home}/run/munged.pid", f"--log-file={self.home}/log/munged.log",
                f"--seed-file={self.home}/run/seed", "--num-threads=1",
            )  # fmt: skip
            self._wait_for(lambda: (self.home / "run/munge.sock").exists(), "munged")
            self.start_controller("-c")
            self._start("slurmd", "-D", "-f", str(self.home / "slurm.conf"))
            self._wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", "slurmd")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.run("scancel", "--state=PENDING", "--user=root")
        self.run("scancel", "--state=RUNNING", "--user=root", "--signal=KILL", "--full")
        for name in reversed(list(self._processes)):
            self.kill(name)

    def start_controller(self, *options: str) -> None:
        """Start slurmctld, also again after `kill`."""
        self._start("slurmctld", "-D", *options)

    def kill(self, name: str) -> None:
        """SIGKILL a program of it."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert program is not None, name
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        environment = {**os.environ, **self.environment, "PATH": path}
        with (self.home / f"log/{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                [program, *arguments], env=environment, stdout=out, stderr=out, cwd=self.home, start_new_session=True
            )

    def _wait_for(self, is_there: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not is_there():
            if time.monotonic() > deadline or self._processes[name].poll() is not None:
                raise RuntimeError(f"{name} does not start: {(self.home / f'log/{name}.out').read_text()[-2000:]}")
            time.sleep(0.05)


def missing_programs() -> list[str]:
    """Those that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
