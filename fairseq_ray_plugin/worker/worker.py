"""A worker: a preloaded server, and a rank of training that may come and go.

Knows nothing of Ray. Its methods are coroutines on one event loop: it answers at any time,
whatever its rank does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import time
from multiprocessing.connection import Connection

from fairseq_ray_plugin.assignment import (
    Assignment,
    Backlog,
    Due,
    Exited,
    Forked,
    Found,
    Holding,
    Job,
    NotForked,
    Preload,
    Role,
    Site,
    Write,
    WriteCheckpoint,
)
from fairseq_ray_plugin.checkpoints.memory import RAW, MemoryFolder
from fairseq_ray_plugin.protocol import (
    Blocked,
    Copy,
    Drop,
    Ended,
    FromRank,
    Held,
    Hold,
    InMemory,
    Missing,
    Order,
    Publish,
    RankMessage,
    Ready,
    Running,
    Save,
    Saved,
    Stacks,
    Unfit,
    Unsaved,
    WorkerMessage,
)
from fairseq_ray_plugin.worker import adoption, deposits, evidence, meeting, notices, user_code
from fairseq_ray_plugin.worker.family import end_group
from fairseq_ray_plugin.worker.gpu import uuid_of
from fairseq_ray_plugin.worker.outbox import Outbox
from fairseq_ray_plugin.worker.server import Message, Server, environment_of
from fairseq_ray_plugin.worker.writing import Writing

HEARTBEAT_S = 0.5
"""How often a node lets itself be heard."""

ANSWER_S = 2.0
"""A training process that has not answered for so long, when told to hold at once, is ended."""

WRITING_S = 60.0
"""The last checkpoint waits so long for the one that is being written."""

IMPORT_LIMIT_S = 100.0
"""Imports that take longer hang."""

MAKE_LIMIT_S = 1800.0
"""So does making what ranks inherit, which may read large files."""


class Worker:
    """Starts, holds, saves and ends ranks; what they say becomes messages to the driver."""

    job: Job  # which comes with `prepare`: the server begins to import before

    server_program: tuple[str, ...] = ("-m", "fairseq_ray_plugin.worker.forkserver")
    """What Python runs as the preloaded server."""

    def __init__(self, site: Site) -> None:
        self.since = time.monotonic()
        self.server = Server(self.server_program, site)
        self.is_prepared = False
        self.messages = Outbox(self.get_node_id())
        self.writing = Writing(
            self._fork_writer,
            lambda generation, says: self.messages.put(FromRank(generation, says)),
            self._pass_on,
        )
        self.memory = MemoryFolder(site.run_id, self.get_node_id())
        self.held_to_publish = ""  # name of the state that is held, on its way through memory
        self.listener: socket.socket | None = None
        self.link: Connection | None = None
        self.generation = 0
        """That of the rank at the other end of `link`, or that was there last."""

        self.rank, self.world_size = -1, 0
        """Of that generation."""

        self.void = 0
        """The newest generation that was told to hold: starting it now would be too late."""

        self.watches: list[asyncio.Task[object]] = []
        self.pid = 0
        self.rank_ended = asyncio.Event()  # there is none, and its server has said why
        self.rank_ended.set()
        self.answered = False
        self.gpu = ""
        self.user_dir: str | None = None

    def get_node_ip(self) -> str:
        """The address at which other nodes reach this one."""
        raise NotImplementedError

    def get_node_id(self) -> str:
        """The cluster's name for this node."""
        raise NotImplementedError

    def get_gpu(self) -> str:
        """The cluster's name for the GPU of this slot; empty where it has none."""
        return ""

    async def prepare(self, job: Job) -> None:
        """Make the preloaded server ready for this job; `Ready` or `Unfit` follows."""
        if self.is_prepared:
            return  # asked again, for it was not known whether this had arrived
        self.job, self.is_prepared = job, True
        if not self.memory.folders:
            self.messages.put(Unfit(f"no folder for snapshots: {'; '.join(self.memory.refusals)}"))
            return
        self.memory.remove_partials()
        self.memory.remove_folders()
        try:
            self.user_dir = user_code.where_it_is(job, self._own_folder("user_dir"))
        except (OSError, ValueError) as error:
            self.messages.put(Unfit(f"--user-dir {job.user_dir}: {error}"))
            return
        self.server.prepare(
            Preload(
                cfg=job.cfg,
                working_dir=job.working_dir,
                python_path=job.python_path,
                user_dir=self.user_dir,
                shared_model=self._shared_model(),
            ),
            self._hear_server,
        )
        for due in deposits.left_behind(self.memory.folders):
            self.writing.add(due)
        self.asks_gpu = asyncio.create_task(uuid_of(self.get_gpu(), environment_of(job)))
        watches = (self._watch_notices(), self._watch_imports())
        self.watches = [self.asks_gpu, *map(asyncio.create_task, watches)]

    def _say_ready(self, asked: asyncio.Task[str]) -> None:
        if not asked.cancelled():
            self.gpu = asked.result()
            self.messages.put(Ready(self.gpu))

    async def _watch_notices(self) -> None:
        notice = await notices.spot_notice()
        if notice is not None:
            self.messages.put(notice)

    async def _watch_imports(self) -> None:
        await asyncio.sleep(IMPORT_LIMIT_S)
        what, limit_s = "importing what it needs", IMPORT_LIMIT_S
        if self.server.has_imported:
            await asyncio.sleep(MAKE_LIMIT_S)
            what, limit_s = "making the task and the model", MAKE_LIMIT_S
        if not self.server.is_ready:
            stacks = await evidence.stacks(self.server.process.pid)
            self.messages.put(Unfit(f"{what} takes longer than {limit_s:.0f} s:\n{stacks}"))

    def _shared_model(self) -> str:
        """Where the node's workers share one; not on its disk."""
        in_memory, *on_disk = self.memory.folders
        return os.path.join(in_memory, "model") if on_disk else ""

    def _own_folder(self, what: str) -> str:
        """Path of a folder on disk that no other worker has."""
        return os.path.join(self.memory.folders[-1], f"{what}_{os.getpid()}")

    async def next_messages(self, num_heard: int, limit_s: float) -> list[WorkerMessage]:
        """What there is to say; waits no longer than that for something.

        Args:
            num_heard: messages that have arrived; the others are said again, should the answer
                that had them have been lost.
        """
        self.messages.forget(num_heard)
        return await self.messages.get(limit_s)

    async def adopt(self) -> Found:
        """What a control loop must know that takes this worker over from one that has died."""
        return adoption.found(self)

    async def beat(self) -> None:
        """The node is heard of when this returns."""
        await asyncio.sleep(HEARTBEAT_S)

    def find_free_port(self, host: str | None = None) -> int:
        """A port on this node, kept open for the training process to take over.

        Args:
            host: the address of this node at which alone it can be reached; None: as other nodes
                reach it.
        """
        if self.listener is not None:
            self.listener.close()
        self.listener = meeting.listen(host or self.get_node_ip())
        return int(self.listener.getsockname()[1])

    async def address(self, on_one_node: bool) -> tuple[str, int]:
        """Where the ranks of the next generation meet, if this worker runs rank 0.

        Args:
            on_one_node: all of them run on this node, and nobody else need reach it.
        """
        host = meeting.LOOPBACK if on_one_node else self.get_node_ip()
        return host, self.find_free_port(host)

    async def start(self, role: Role, master: tuple[str, int]) -> None:
        """Fork a training process; the one of the last generation ends."""
        if role.generation <= self.void:
            return
        restore = role.restore
        if role.rank == 0 and restore and role.from_snapshot and not self.memory.has(restore):
            self.messages.put(FromRank(role.generation, Missing(restore)))
            return
        self._drop_link()
        self.rank_ended.clear()
        self.generation, self.pid = role.generation, 0
        self.rank, self.world_size = role.rank, role.world_size
        job = self.job
        assignment = Assignment(
            **dataclasses.asdict(role),
            master=master,
            groups=job.groups,
            restart_epoch=job.restart_epoch,
            drops_batches=job.drops_batches,
            threads=job.threads,
            user_dir=self.user_dir,
            snapshot_folders=self.memory.folders,
            snapshot_updates=job.snapshot_updates if role.keeps_snapshots else 0,
            passage=self._own_folder("restored"),
            claim=job.claim,
            interface=meeting.interface(master[0], self.get_node_ip()),
        )
        listener = self.listener if role.rank == 0 and role.world_size > 1 else None
        self.link = self.server.fork(assignment, listener)
        if listener is not None:
            self.listener = None
        asyncio.get_running_loop().add_reader(self.link.fileno(), self._hear_rank)
        self.writing.new_rank()

    def _fork_writer(self, order: WriteCheckpoint) -> Connection:
        job = self.job
        order = dataclasses.replace(order, claim=job.claim, store=job.store)
        if job.store:
            order = dataclasses.replace(order, passage=self._own_folder("passage"))
        return self.server.fork_writer(order)

    async def tell(self, order: Order) -> None:
        """What is asked for is under way; every order but `Drop` is answered by a message."""
        match order:
            case Hold():
                await self._hold(order)
            case Save(as_checkpoint):
                await self._save(as_checkpoint)
            case Publish(snapshot):
                assert isinstance(snapshot.place, InMemory)
                if self.memory.has(snapshot.place.path):
                    self.writing.publish(self.generation, snapshot, self.job.last_checkpoint)
                else:
                    self._say(Unsaved(f"the snapshot {snapshot.place.path} is gone"))
            case Drop(paths):
                self.memory.remove(paths)

    async def _hold(self, order: Hold) -> None:
        self.void = max(self.void, order.generation)
        stacks = None
        if order.with_stacks and order.generation == self.generation and self.pid:
            stacks = await evidence.stacks(self.pid)
        if order.generation < self.generation:
            return  # it was overtaken, or another rank has begun meanwhile
        if stacks is not None:
            self._say(Stacks(stacks))
        if self.link is None:
            with contextlib.suppress(asyncio.TimeoutError):  # why it has none comes before that
                await asyncio.wait_for(self.rank_ended.wait(), ANSWER_S)
        if self.link is None:
            self._say(Held(None, order.generation))
            return
        self.answered = False
        self._pass_on(order)
        if order.at_once:
            loop = asyncio.get_running_loop()
            loop.call_later(ANSWER_S, self._end_unanswering, self.generation)

    def _end_unanswering(self, generation: int) -> None:
        if generation == self.generation and self.link is not None and not self.answered:
            self.server.kill_rank()

    async def _save(self, as_checkpoint: bool) -> None:
        if as_checkpoint:  # an older state must not come after it under the same name
            await self.writing.idle(WRITING_S)
        if self.link is None:
            self._say(Unsaved("the training process that held it is no more"))
        elif as_checkpoint and self.job.store:
            self.publish_held()  # the rank may have to go
        elif as_checkpoint:
            folder, name = os.path.split(self.job.last_checkpoint)
            self._pass_on(Write((folder,), name, as_checkpoint=True))
        else:
            name = f"held_{self.generation}_{self.pid}{RAW}"
            self._pass_on(Write(self.memory.folders, name))

    def publish_held(self) -> None:
        """What the rank holds goes to memory, and from there to the run's last checkpoint."""
        self.held_to_publish = f"held_{self.generation}_{self.pid}_last{RAW}"
        self._pass_on(Write(self.memory.folders, self.held_to_publish))

    async def stop(self) -> None:
        """The training process and the server end, and nothing stays in memory."""
        self._drop_link()
        self.writing.close()
        for watch in self.watches:
            watch.cancel()
        await self.server.close()
        for what in ("user_dir", "restored", "passage"):
            if self.memory.folders:
                shutil.rmtree(self._own_folder(what), True)
        self.memory.release()

    def _say(self, message: RankMessage) -> None:
        self.messages.put(FromRank(self.generation, message))

    def _pass_on(self, order: Hold | Write | Backlog) -> None:
        try:
            if self.link is not None:
                self.link.send(order)
        except OSError:
            pass  # it has ended; the server says how

    def _drop_link(self) -> None:
        if self.link is not None:
            asyncio.get_running_loop().remove_reader(self.link.fileno())
            self.link.close()
            self.link = None

    def _hear_rank(self) -> None:
        try:
            while self.link is not None and self.link.poll():
                message = self.link.recv()
                match message:
                    case Holding():
                        self.answered = True
                    case Due():
                        self.writing.add(message)
                    case Saved(update, path) if os.path.basename(path) == self.held_to_publish:
                        copy = Copy(update, InMemory(self.get_node_id(), path))
                        target = self.job.last_checkpoint
                        self.writing.publish(self.generation, copy, target, and_remove=True)
                    case _:
                        self._say(message)
        except (EOFError, OSError):
            self._drop_link()

    def _hear_server(self, message: Message) -> None:
        match message:
            case Ready():
                self.asks_gpu.add_done_callback(self._say_ready)
            case Unfit():
                end_group(0 if self.rank_ended.is_set() else self.pid)  # who would have is no more
                self.rank_ended.set()
                self.messages.put(message)
            case Forked(generation, pid) if generation == self.generation:
                self.memory.remove_partials()
                self.pid = pid
                self._say(Running(pid))
            case NotForked(generation, reason) if generation == self.generation:
                self._drop_link()
                self._say(Blocked(reason))
                self.rank_ended.set()
            case Exited(pid, how, crashed) if pid == self.pid:
                self._hear_rank()  # its last words come before its end
                self._drop_link()
                self.memory.remove_partials()
                self._say(Ended(how, crashed))
                self.rank_ended.set()
