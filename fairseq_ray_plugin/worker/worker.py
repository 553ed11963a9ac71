"""A worker: a preloaded server, and a rank of training that may come and go.

Knows nothing of Ray. Its methods are coroutines on one event loop: it answers at any time,
whatever its rank does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Awaitable
from multiprocessing.connection import Connection

from fairseq_ray_plugin.assignment import (
    Assignment,
    Backlog,
    Due,
    Exited,
    Forked,
    Found,
    Go,
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
    Notice,
    Order,
    Publish,
    RankMessage,
    Ready,
    Running,
    Save,
    Saved,
    Stacks,
    StandDown,
    Unfit,
    Unsaved,
    WorkerMessage,
)
from fairseq_ray_plugin.worker import adoption, deposits, evidence, meeting, notices, user_code
from fairseq_ray_plugin.worker.family import end_group
from fairseq_ray_plugin.worker.gpu import uuid_of
from fairseq_ray_plugin.worker.outbox import Outbox
from fairseq_ray_plugin.worker.rank_link import RankLink
from fairseq_ray_plugin.worker.server import Message, Server, environment_of
from fairseq_ray_plugin.worker.writing import Writing

HEARTBEAT_S = 0.5
"""How often a node lets itself be heard."""

ANSWER_S = 2.0
"""A training process that has not answered for so long, when told to hold at once, is ended."""

WRITING_S = 60.0
"""The last checkpoint waits so long for the one that is being written."""


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
        self.door = meeting.Door()
        self.link: RankLink | None = None
        self.standby: RankLink | None = None
        """To the rank of a generation that has not begun."""

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
            self.user_dir = user_code.where_it_is(job, self.memory.own("user_dir"))
        except (OSError, ValueError) as error:
            self.messages.put(Unfit(f"--user-dir {job.user_dir}: {error}"))
            return
        self.server.prepare(
            Preload(
                cfg=job.cfg,
                working_dir=job.working_dir,
                python_path=job.python_path,
                user_dir=self.user_dir,
                shared_model=self.memory.shared("model"),
            ),
            self._hear_server,
        )
        for due in deposits.left_behind(self.memory.folders):
            self.writing.add(due)
        self.asks_gpu = asyncio.create_task(uuid_of(self.get_gpu(), environment_of(job)))
        watches = (self._say_if(notices.spot_notice()), self._say_if(self.server.hangs()))
        self.watches = [self.asks_gpu, *map(asyncio.create_task, watches)]

    def _say_ready(self, asked: asyncio.Task[str]) -> None:
        if not asked.cancelled():
            self.gpu = asked.result()
            self.messages.put(Ready(self.gpu))

    async def _say_if(self, watch: Awaitable[Notice | Unfit | None]) -> None:
        if (message := await watch) is not None:
            self.messages.put(message)

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

    async def address(self, on_one_node: bool) -> tuple[str, int]:
        """Where the ranks of the next generation meet, if this worker runs rank 0: a port that is
        kept open for the training process to take over.

        Args:
            on_one_node: all of them run on this node, and nobody else need reach it.
        """
        host = meeting.LOOPBACK if on_one_node else self.get_node_ip()
        return host, self.door.open(host)

    async def start(self, role: Role, master: tuple[str, int]) -> None:
        """Fork a training process, or let the one go on that stands by; the last one ends."""
        if role.generation <= self.void:
            return
        restore = role.restore
        if role.rank == 0 and restore and role.from_snapshot and not self.memory.has(restore):
            self.messages.put(FromRank(role.generation, Missing(restore)))
            return
        standby = self.standby
        # by its number alone it may be one that another loop, now dead, has made
        if standby and (standby.generation, standby.master) == (role.generation, master):
            if standby.has_ended:
                return  # as has been said
            self.standby = None
            standby.go = Go(restore, self._snapshot_updates(role))
            self.server.promote(role.generation)
        else:
            self._stand_down()
            standby = self._fork(role, master)
        self._drop_link()
        self.link = standby
        self.rank_ended.clear()
        self.generation, self.pid = role.generation, standby.pid
        self.rank, self.world_size = role.rank, role.world_size
        self.writing.new_rank()

    async def stand_by(self, role: Role, master: tuple[str, int]) -> None:
        """Fork the training process of a generation to come, beside the one that is there."""
        if role.generation > max(self.void, self.generation):
            self._stand_down()
            self.standby = self._fork(role, master)

    def _stand_down(self) -> None:
        """Who stands by is not wanted."""
        if self.standby is not None:
            self.standby.close()
            self.server.stand_down(self.standby.generation)
            self.standby = None

    def _fork(self, role: Role, master: tuple[str, int]) -> RankLink:
        assignment = Assignment.of(
            self.job,
            role,
            master=master,
            user_dir=self.user_dir,
            snapshot_folders=self.memory.folders,
            snapshot_updates=self._snapshot_updates(role),
            passage=self.memory.own("restored"),
            interface=meeting.interface(master[0], self.get_node_ip()),
        )
        listener = self.door.take() if role.rank == 0 and role.world_size > 1 else None
        connection = self.server.fork(assignment, listener)
        return RankLink(role.generation, master, connection, self._hear_rank)

    def _snapshot_updates(self, role: Role) -> int | None:
        return self.job.snapshot_updates if role.keeps_snapshots else 0

    def _fork_writer(self, order: WriteCheckpoint) -> Connection:
        job = self.job
        order = dataclasses.replace(order, claim=job.claim, store=job.store)
        if job.store:
            order = dataclasses.replace(order, passage=self.memory.own("passage"))
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
            case StandDown(generation):
                if self.standby is not None and self.standby.generation == generation:
                    self._stand_down()

    async def _hold(self, order: Hold) -> None:
        self.void = max(self.void, order.generation)
        if self.standby is not None and self.standby.generation <= self.void:
            self._stand_down()
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
        self._stand_down()
        self.writing.close()
        for watch in self.watches:
            watch.cancel()
        await self.server.close()
        self.memory.release()

    def _say(self, message: RankMessage) -> None:
        self.messages.put(FromRank(self.generation, message))

    def _pass_on(self, order: Hold | Write | Backlog) -> None:
        if self.link is not None:
            self.link.send(order)

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    def _hear_rank(self, link: RankLink) -> None:
        try:
            for message in link.read():
                match message:
                    case _ if link is self.standby:
                        self.messages.put(FromRank(link.generation, message))
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
            link.close()
            if link is self.link:
                self.link = None

    def _hear_server(self, message: Message) -> None:
        match message:
            case Ready():
                self.asks_gpu.add_done_callback(self._say_ready)
            case Unfit():
                end_group(0 if self.rank_ended.is_set() else self.pid)  # who would have is no more
                self.rank_ended.set()
                self.messages.put(message)
            case Forked(generation, pid) if self.standby and generation == self.standby.generation:
                self.standby.pid = pid
            case Forked(generation, pid) if generation == self.generation:
                self.memory.remove_partials()
                self.pid = pid
                self._say(Running(pid))
                if self.link is not None and self.link.go is not None:
                    self.link.send(self.link.go)  # the rank before has given back its GPU
            case NotForked(generation, reason) if generation == self.generation:
                self._drop_link()
                self._say(Blocked(reason))
                self.rank_ended.set()
            case Exited(pid, how, crashed) if self.standby and pid == self.standby.pid:
                self._hear_rank(self.standby)
                self.standby.has_ended = True
                self.messages.put(FromRank(self.standby.generation, Ended(how, crashed)))
            case Exited(pid, how, crashed) if pid == self.pid:
                if self.link is not None:
                    self._hear_rank(self.link)  # its last words come before its end
                self._drop_link()
                self.memory.remove_partials()
                self._say(Ended(how, crashed))
                self.rank_ended.set()
