"""One writer: who holds a save dir says so there, and whether it lives can be told.

Claims are numbered and each is a small file of its own: the one with the highest number counts.
Taking over a dead run's claim is creating the next number, which the place lets only one do. A
holder renews its own claim alone, never another's, so that nothing is written over a successor.
Who has a higher number above it has lost the save dir, and writes no more.

On the holder's own machine its death is known at once. From another machine, it is taken for dead
when its claim has not changed for a while: by the reader's clock alone, for clocks differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from fairseq_ray_plugin.checkpoints.claim_places import Place

logger = logging.getLogger(__name__)

BEAT_S = 3.0
"""How often a claim is renewed."""

SILENCE_S = 15.0
"""A claim from another machine that does not change for so long is a dead run's."""

LOOK_S = 0.2
"""How often such a claim is looked at."""


OVERTAKEN = "was taken over by another run: nothing more is written there"
"""Said where a checkpoint is not written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a save dir, as its claim says."""

    nonce: str
    host: str
    machine: str
    """The boot of a machine and the process ids there, which a container has of its own."""

    pid: int
    started: int
    """When the process was, in the kernel's ticks: another one may have its pid later."""

    since: str
    """When it began, for people."""

    run: str = ""
    """Of a run that lives on a cluster, whoever starts it or another process for it; empty: this
    process is the run."""

    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"a run on {self.host} (pid {self.pid}, since {self.since})"


class InUse(Exception):
    """A living run holds the save dir: the message, one line, says which."""


def take(
    place: Place,
    save_dir: str,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
    run: str = "",
) -> Claim:
    """The claim of this process on a save dir.

    Where the last holder was on another machine and did not say goodbye, this takes up to
    SILENCE_S seconds.

    Args:
        save_dir: for people.
        run: identifies a run that outlives its process: what it holds already, it goes on holding.

    Raises:
        InUse: a living run has it.
        OSError: claims cannot be read or written there.
    """
    me = dataclasses.replace(this_process(), run=run)
    number = 0
    while True:
        newest = max([number, *_numbers(place)])
        before = _read(place, newest)
        if run and before is not None and before.run == run:
            place.replace(_name(newest), _written(me))
            return Claim(place, newest, me)
        _wait_for_the_end(place, newest, save_dir, clock, pause)
        number = newest + 1
        created = place.create(_name(number), _written(me))
        # an answer may be lost, and the same asked again
        if not created and not _is_same(me, _read(place, number)):
            continue
        # what was looked at may be long past: whoever has more than the next number came first
        if max(_numbers(place), default=0) > number:
            place.remove(_name(number))
            continue
        for old in _numbers(place):
            if old < number:
                with contextlib.suppress(OSError):  # another user's: it counts for nothing now
                    place.remove(_name(old))
        return Claim(place, number, me)


def refuse_if_in_use(place: Place, save_dir: str) -> None:
    """Raise InUse where a run on this machine is known to live; waits for nothing.

    It may be in use all the same: `take` alone can tell. A run on a cluster may be followed.
    """
    holder = _read(place, max(_numbers(place), default=0))
    if holder is not None and not holder.run and is_known_dead(holder) is False:
        raise InUse(_in_use(save_dir, holder))


def is_overtaken(place: Place, number: int) -> bool:
    """Whether another run has taken the save dir since the claim of that number.

    Where there are no claims to be seen, nobody has.
    """
    try:
        return any(other > number for other in _numbers(place))
    except OSError:  # who cannot look there cannot write there, either, and says why
        return False


class Claim:
    """A hold on a save dir, renewed by a thread until it is released or lost.

    Args:
        beat_s: how often it is renewed.
    """

    def __init__(self, place: Place, number: int, me: Holder, beat_s: float = BEAT_S) -> None:
        self.number = number
        self.lost: str | None = None
        """Who holds the save dir now, for people, if another run does: nothing more may be
        written."""

        self._place, self._me, self._beat_s = place, me, beat_s
        self._released = threading.Event()
        # a daemon: where the disk stalls, it stalls alone
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self, limit_s: float = 2.0) -> None:
        """The next run may have it at once; waits for the disk no longer than that."""
        self._released.set()
        self._thread.join(limit_s)

    def _renew(self) -> None:
        me, has_complained = self._me, False
        while self.lost is None:
            is_over = self._released.wait(self._beat_s)
            me = dataclasses.replace(me, beat=me.beat + 1, released=is_over)
            try:
                self._keep(me)
            except Exception as error:
                if not has_complained:  # once: a full disk stays full
                    logger.warning("the claim on the save dir cannot be renewed: %r", error)
                has_complained = True
            if is_over:
                return

    def _keep(self, me: Holder) -> None:
        name = _name(self.number)
        is_there = self._place.read(name) is not None
        newest = max(_numbers(self._place), default=0)
        if newest > self.number:
            self.lost = str(_read(self._place, newest) or "another run")
        elif is_there:
            self._place.replace(name, _written(me))
        else:
            # somebody has emptied the folder, which ends no run. Or a successor has, whose own
            # claim is still to be seen here: a shared file system remembers for a while what is in
            # a folder, but not over a change of one's own
            self._place.create(name, _written(me))


def this_process() -> Holder:
    """A claim of this process."""
    pid = os.getpid()
    return Holder(
        nonce=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        started=_start_of(pid) or 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def is_known_dead(holder: Holder) -> bool | None:
    """Whether a holder's process is no more; None: that cannot be told from here."""
    if holder.released:
        return True
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, which lives
    started = _start_of(holder.pid)
    if started is None:  # it has just gone, or must not be looked at
        return None
    # an earlier run of this very process was left without being released
    return started != holder.started or holder.pid == os.getpid()


def _wait_for_the_end(
    place: Place,
    number: int,
    save_dir: str,
    clock: Callable[[], float],
    pause: Callable[[float], object],
) -> None:
    """Nobody who lives holds the claim of that number; else raises InUse."""
    seen, begin = place.read(_name(number)), clock()
    has_told = False
    while seen is not None:
        holder = _parsed(seen)
        is_dead = is_known_dead(holder) if holder else None
        if is_dead or clock() - begin > SILENCE_S:
            return
        if is_dead is False:
            raise InUse(_in_use(save_dir, holder))
        if clock() - begin > BEAT_S and not has_told:
            has_told = True
            logger.warning(
                "--save-dir %s was in use by %s: waiting up to %.0f s to see whether that lives",
                *(save_dir, holder or "a run that left no name", SILENCE_S),
            )
        pause(LOOK_S)
        before, seen = seen, place.read(_name(number))
        if seen != before and seen is not None:
            now = _parsed(seen)
            if holder and now and not now.released:
                raise InUse(_in_use(save_dir, now))
            begin = clock()  # it is being written


def _in_use(save_dir: str, holder: Holder | None) -> str:
    return (
        f"--save-dir {save_dir} is in use by {holder}: wait for its end, end it, or take another "
        "--save-dir"
    )


def _name(number: int) -> str:
    return f"{number}.json"


def _numbers(place: Place) -> list[int]:
    stems = [name.removesuffix(".json") for name in place.names() if name.endswith(".json")]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _read(place: Place, number: int) -> Holder | None:
    content = place.read(_name(number))
    return None if content is None else _parsed(content)


def _is_same(me: Holder, there: Holder | None) -> bool:
    return there is not None and there.nonce == me.nonce


def _written(holder: Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder)).encode()


def _parsed(content: bytes) -> Holder | None:
    """None: half a claim, as of one that is being written or whose disk was full."""
    try:
        fields: dict[str, Any] = json.loads(content)
        return Holder(**fields)
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    """Empty where it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a process was started, -1 of one that has ended; None: it cannot be looked at."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    has_ended = fields[0] in ("Z", "X")  # and nobody has asked how
    return -1 if has_ended else int(fields[19])
