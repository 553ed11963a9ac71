"""A worker without Ray, and what a test asks it, as the driver does."""

import asyncio
import os
import selectors
import threading
from collections import deque
from pathlib import Path

import puppets

from fairseq_ray_plugin.assignment import Holding, Job, Role
from fairseq_ray_plugin.protocol import FromRank, Held, Hold, Running
from fairseq_ray_plugin.worker.worker import Worker

MASTER = ("127.0.0.1", 0)


def role(generation, rank=0, restore=None, from_snapshot=False):
    return Role(
        generation=generation,
        rank=rank,
        world_size=1,
        restore=restore and str(restore),
        from_snapshot=from_snapshot,
        keeps_snapshots=True,
    )


class LocalWorker(Worker):
    server_program = (puppets.PROGRAM,)

    def get_node_ip(self):
        return "127.0.0.1"

    def get_node_id(self):
        return "node"


class LastFirst(selectors.DefaultSelector):
    """Of what can be read, what came last is read first."""

    def select(self, timeout=None):
        return super().select(timeout)[::-1]


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead_s = 0.0

    def time(self):
        return super().time() + self.ahead_s


class Driver:
    """Asks a worker, whose event loop has a thread of its own, as the driver does."""

    def __init__(self, cfg, save_dir):
        self.loop = Loop(LastFirst())
        self.errors = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.last_checkpoint = save_dir / "checkpoint_last.pt"
        job = Job(
            run_id="run",
            cfg=cfg,
            groups=None,
            restart_epoch=False,
            snapshot_updates=None,
            threads=1,
            working_dir=os.getcwd(),
            python_path=(),
            user_dir=None,
            user_dir_zip=None,
            last_checkpoint=str(self.last_checkpoint),
            environment={},
        )
        self.worker = LocalWorker(job)
        self.num_heard, self.unread = 0, deque()
        self.ask(self.worker.prepare(job))

    def ask(self, question):
        return self.begin(question).result(puppets.WAIT_S)

    def begin(self, question):
        return asyncio.run_coroutine_threadsafe(question, self.loop)

    def tell(self, *orders):
        for order in orders:
            self.ask(self.worker.tell(order))

    def start(self, generation, **where):
        self.ask(self.worker.start(role(generation, **where), MASTER))

    def hear(self):
        """The next message."""
        if not self.unread:
            self.unread += self.ask(self.worker.next_messages(self.num_heard, puppets.WAIT_S))
            assert self.unread, "nothing is said"
            self.num_heard += len(self.unread)
        return self.unread.popleft()

    def hears_nothing(self):
        return not self.unread and not self.ask(self.worker.next_messages(self.num_heard, 0))

    def let_pass(self, seconds):
        """So much later, all that was to happen until then has happened."""

        async def put_forward():
            self.loop.ahead_s += seconds
            await asyncio.sleep(0.001)  # what was due earlier comes first

        self.ask(put_forward())

    @property
    def memory(self):
        """Where the node keeps snapshots."""
        return [Path(folder) for folder in self.worker.memory.folders]

    def close(self):
        if self.thread.is_alive():
            self.ask(self.worker.stop())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()
        assert [] == self.errors


def start(driver, ranks, generation=1, **where):
    """A rank has been started."""
    driver.start(generation, **where)
    rank = ranks.next()
    assert generation == rank.assignment.generation
    assert FromRank(generation, Running(rank.pid)) == driver.hear()
    return rank


def hold(driver, rank, generation=1, update=7):
    """The rank is at rest, in a generation that it is of or that never began."""
    driver.tell(Hold(generation, at_once=True))
    assert Hold(generation, at_once=True) == rank.hear()
    rank.say(Holding(), Held(update, generation))
    assert FromRank(rank.assignment.generation, Held(update, generation)) == driver.hear()
