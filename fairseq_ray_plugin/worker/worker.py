"""A worker: a preloaded server, and a training process that may come and go.

Knows nothing of Ray. Its methods are coroutines on one event loop: it answers at any time,
whatever its training process does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from typing import Any

import psutil

from fairseq_ray_plugin.checkpoints.memory import MemoryFolder
from fairseq_ray_plugin.protocol import Job, Preload
from fairseq_ray_plugin.worker import evidence, notices, user_code

ANSWER_S = 2.0
"""A training process that has not answered for so long, when told to hold at once, is ended."""


class Worker:
    """Starts, holds, saves and ends training processes; what they say becomes events."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        # by node, not by machine: several nodes of a cluster may share one
        self.memory = MemoryFolder(f"{job.run_id}_{self.get_node_id()}")
        self.listener: socket.socket | None = None
        self.server: Connection | None = None
        self.link: Connection | None = None
        self.generation = 0
        self.pid = 0
        self.answered = False
        self.ready = False
        self.user_dir: str | None = None

    def get_node_ip(self) -> str:
        """The address at which other nodes reach this one."""
        raise NotImplementedError

    def get_node_id(self) -> str:
        """The cluster's name for this node."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """Start the preloaded server; "ready" or "gone" follows as an event."""
        job = self.job
        self.user_dir = self._unpack_user_dir()
        self.server, end = Pipe()
        environment = {**_network(self.get_node_ip()), **os.environ, **job.environment}
        environment["OMP_NUM_THREADS"] = str(job.threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairseq_ray_plugin.worker.forkserver", str(end.fileno())],
            pass_fds=[end.fileno()],
            env=environment,
        )
        end.close()
        self.server.send(
            Preload(
                cfg=job.cfg,
                working_dir=job.working_dir,
                python_path=job.python_path,
                user_dir=self.user_dir,
            )
        )
        asyncio.get_running_loop().add_reader(self.server.fileno(), self._hear_server)
        self.watch = asyncio.create_task(self._watch_notices())

    async def _watch_notices(self) -> None:
        notice = await notices.spot_notice()
        if notice is not None:
            self.events.put_nowait(("notice", notice.reason, notice.left_s))

    def _unpack_user_dir(self) -> str | None:
        """The user's own code, shipped to where it is missing."""
        job = self.job
        if job.user_dir is None or job.user_dir_zip is None or os.path.isdir(job.user_dir):
            return job.user_dir
        folder = os.path.join(self.memory.disk, f"user_dir_{os.getpid()}")
        return user_code.unpack_folder(job.user_dir_zip, os.path.basename(job.user_dir), folder)

    async def next_events(self, limit_s: float) -> list[tuple[Any, ...]]:
        """What has happened since the last call; waits no longer than that for something to."""
        events = []
        try:
            events.append(await asyncio.wait_for(self.events.get(), limit_s))
        except TimeoutError:
            return []
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return events

    def find_free_port(self) -> int:
        """A port on this node, kept open for the training process to take over."""
        if self.listener is not None:
            self.listener.close()
        family = socket.AF_INET6 if ":" in self.get_node_ip() else socket.AF_INET
        self.listener = socket.create_server(("", 0), family=family)
        return int(self.listener.getsockname()[1])

    async def address(self) -> tuple[str, int]:
        """Where the ranks of the next generation meet, if this worker runs rank 0."""
        return self.get_node_ip(), self.find_free_port()

    async def start(
        self,
        generation: int,
        rank: int,
        world_size: int,
        master: tuple[str, int],
        restore: str | None,
        keeps_snapshots: bool,
    ) -> None:
        """Fork a training process; the one of the last generation ends."""
        assert self.server is not None
        self._drop_link()
        self.generation, self.pid = generation, 0
        if rank == 0 and restore and self._is_missing(restore):
            self._report("missing", text=restore)
            return
        assignment = dict(
            generation=generation,
            rank=rank,
            world_size=world_size,
            master=master,
            restore=restore,
            groups=self.job.groups,
            restart_epoch=self.job.restart_epoch,
            threads=self.job.threads,
            user_dir=self.user_dir,
            snapshot_folders=self.memory.folders,
            snapshot_updates=self.job.snapshot_updates if keeps_snapshots else 0,
        )
        self.link, end = Pipe()
        self.answered = False
        listener = self.listener if rank == 0 and world_size > 1 else None
        self.server.send(("fork", assignment, listener is not None))
        send_handle(self.server, end.fileno(), None)
        end.close()
        if listener is not None:
            send_handle(self.server, listener.fileno(), None)
            listener.close()
            self.listener = None
        asyncio.get_running_loop().add_reader(self.link.fileno(), self._hear_rank)

    def _is_missing(self, path: str) -> bool:
        in_memory = os.path.dirname(path) in self.memory.folders
        return in_memory and not os.path.exists(path)

    async def hold(self, generation: int, at_once: bool, with_stacks: bool = False) -> None:
        """The training process comes to rest with its state; "held" follows."""
        if with_stacks and generation == self.generation and self.pid:
            self._report("stacks", text=await evidence.stacks(self.pid))
        if generation != self.generation:
            return
        self._tell("hold", at_once)
        if at_once:
            asyncio.get_running_loop().call_later(ANSWER_S, self._end_unanswering, generation)

    def _end_unanswering(self, generation: int) -> None:
        if generation == self.generation and self.link is not None and not self.answered:
            assert self.server is not None
            self.server.send(("end", None, False))

    async def save(self, generation: int, as_checkpoint: bool) -> None:
        """The state held becomes a file; "saved" or "unsaved" follows."""
        if as_checkpoint:
            folder, name = os.path.split(self.job.last_checkpoint)
            self._tell("save", ((folder,), name))
        else:
            self._tell("save", (self.memory.folders, f"snapshot_{generation}.pt"))

    async def stop(self) -> None:
        """The training process and the server end, and nothing stays in memory."""
        self._drop_link()
        if self.server is not None:
            self.watch.cancel()
            asyncio.get_running_loop().remove_reader(self.server.fileno())
            self.server.close()
            if not self.ready:  # it imports, and does not listen
                self.process.kill()
            await asyncio.to_thread(self.process.wait)
        shutil.rmtree(os.path.join(self.memory.disk, f"user_dir_{os.getpid()}"), True)
        self.memory.release()

    def _report(
        self, kind: str, update: int | None = None, text: str = "", by_peer: bool = False
    ) -> None:
        self.events.put_nowait(("report", self.generation, kind, update, text, by_peer, self.pid))

    def _tell(self, command: str, argument: Any) -> None:
        try:
            if self.link is not None:
                self.link.send((command, argument))
        except OSError:
            pass  # it has ended; the server says how

    def _drop_link(self) -> None:
        if self.link is not None:
            asyncio.get_running_loop().remove_reader(self.link.fileno())
            self.link.close()
            self.link = None

    def _hear_rank(self) -> None:
        assert self.link is not None
        try:
            while self.link is not None and self.link.poll():
                kind, update, text, by_peer = self.link.recv()
                self.answered |= kind in ("holding", "held", "raised", "refused", "finished")
                if kind == "holding":
                    continue
                if kind in ("saved", "snapshot"):
                    self.memory.keep_only(text)
                self._report(kind, update, text, by_peer)
        except (EOFError, OSError):
            self._drop_link()

    def _hear_server(self) -> None:
        assert self.server is not None
        try:
            kind, pid, text = (*self.server.recv(), "")[:3]
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self.server.fileno())
            self.events.put_nowait(("gone", "its preloaded server died"))
            return
        match kind:
            case "ready":
                self.ready = True
                self.events.put_nowait(("ready",))
            case "unfit":
                self.events.put_nowait(("gone", f"it cannot import what it needs:\n{pid}"))
            case "forked":
                self.pid = pid
                self._report("running")
            case "ended" if pid == self.pid:
                if self.link is not None:
                    self._hear_rank()  # its last words come before its end
                self._drop_link()
                self._report("ended", text=text)


def _network(address: str) -> dict[str, str]:
    """What makes gloo use the interface that other nodes reach.

    It would take the address of this machine's own name, which many systems say is 127.0.1.1.
    """
    for interface, addresses in psutil.net_if_addrs().items():
        if address in (a.address for a in addresses):
            return {"GLOO_SOCKET_IFNAME": interface}
    return {}
