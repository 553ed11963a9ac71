"""A real Slurm on this machine: its controller, and nodes that are as good as machines.

Needs root, and the packages slurm-wlm and munge. Each node is a host of `network.py` with a name,
processes, /dev/shm and /tmp of its own; other files they share with each other and with us.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from network import Network

DAEMONS = ("munged", "slurmctld", "slurmd")
HOME = "192.0.2.1"
"""No node has business there: an address that is kept for examples (RFC 5737)."""

FREEZER = Path("/sys/fs/cgroup/freezer")

START_S = 30

CONFIG = """\
ClusterName=fairseq
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=2,requeue_setup_env_fail
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """A cluster of so many nodes, n1, n2, ..., of one CPU each.

    Args:
        folder: for its configuration, state and logs.
        shared: what of /tmp all nodes see; the rest of it is each node's own.
        proctrack: how processes are tracked: a signal reaches all of a step with `linuxproc`, the
            first of each task with `cgroup`.
    """

    def __init__(self, folder, num_nodes, shared, proctrack="linuxproc"):
        self.folder, self.shared, self.proctrack = folder, shared, proctrack
        self.names = [f"n{number + 1}" for number in range(num_nodes)]
        self.undo = contextlib.ExitStack()
        self.nodes = {}
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self):
        with contextlib.ExitStack() as undo_if_failed:
            undo_if_failed.push(self.undo)
            self.undo.callback(self._remove_cgroups)
            self.network = self.undo.enter_context(Network(HOME, len(self.names)))
            self._configure()
            key, sock = self.folder / "munge.key", self.folder / "munge.socket"
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
            paths = {"key-file": key, "socket": sock, "log-file": self.folder / "munged.log"}
            paths |= {"pid-file": self.folder / "munged.pid", "seed-file": self.folder / "seed"}
            self._run("munged", "-F", "-f", *(f"--{name}={path}" for name, path in paths.items()))
            self._until(sock.exists, "munged")
            self._run("slurmctld", "-D")
            for name in self.names:
                self.start(name)
            self._until(lambda: self.states() == dict.fromkeys(self.names, "idle"), "the nodes")
            undo_if_failed.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()

    def _configure(self):
        addresses = {
            name: host.address for name, host in zip(self.names, self.network.hosts, strict=True)
        }
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        lines = [f"NodeName={name} NodeAddr={at} CPUs=1" for name, at in addresses.items()]
        config = CONFIG.format(
            folder=self.folder,
            host=socket.gethostname(),
            address=self.network.address,
            port=port,
            proctrack=self.proctrack,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = [f"{at} {name}" for name, at in {**addresses, "localhost": "127.0.0.1"}.items()]
        hosts.append(f"{self.network.address} {socket.gethostname()}")
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def _remove_cgroups(self):
        """Of nodes that end in an orderly way there are none left."""
        for name in self.names:
            top = FREEZER / f"slurm_{name}"
            for folder in sorted([top, *top.rglob("*")], reverse=True):
                if folder.is_dir():
                    with contextlib.suppress(OSError):  # its last processes are about to end
                        folder.rmdir()

    def _run(self, *command):
        log = self.undo.enter_context(open(self.folder / f"{command[0]}.out", "ab"))
        process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

        def end():
            process.kill()
            process.wait()

        self.undo.callback(end)
        return process

    def start(self, name):
        """The node is switched on."""
        host = self.network.hosts[self.names.index(name)]
        script = [f"hostname {name}", f"mount --bind {self.folder}/hosts /etc/hosts"]
        script += [f"mount -t tmpfs none {own}" for own in ("/dev/shm", "/mnt")]
        for number, path in enumerate(self.shared):
            script.append(f"mkdir /mnt/{number} && mount --bind {path} /mnt/{number}")
        script.append("mount -t tmpfs none /tmp")
        for number, path in enumerate(self.shared):
            script.append(f"mkdir -p {path} && mount --move /mnt/{number} {path}")
        # the shell is the node's init: it takes the orphans
        script.append(f"{{ slurmd -D -N {name} & wait; }}")
        with host.inside():
            # ours, or its death would be the node's
            self.nodes[name] = self._run(
                *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "bash", "-c", " && ".join(script)),
            )

    def switch_off(self, name):
        """All processes of the node are gone at once; Slurm, which takes minutes, is told."""
        self.nodes[name].kill()
        self.nodes[name].wait()
        self.ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=power")

    def states(self):
        """Node -> as Slurm sees it."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=low")
        return dict(line.split() for line in lines.splitlines())

    def job(self, job):
        """What `scontrol show job` says."""
        text = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def submit(self, script, *arguments, options=(), environment=None):
        """`sbatch` of a script, or a command with --wrap; returns the job's id."""
        return self.ask(
            "sbatch", "--parsable", *options, script, *arguments, more=environment
        ).strip()

    def ask(self, *command, more=None):
        """What a command of Slurm's prints."""
        return subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **(more or {}), "SLURM_CONF": self.environment["SLURM_CONF"]},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def _until(self, condition, what):
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                if condition():
                    return
            assert time.monotonic() < end, f"{what} did not start: see {self.folder}"
            time.sleep(0.1)


def missing():
    """Why there can be no Slurm here; empty: there can."""
    absent = [name for name in DAEMONS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "needs root"
