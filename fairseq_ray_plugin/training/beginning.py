"""A generation up to its first update: what takes long is told, what cannot be used is refused.

Of a restart fairseq tells nothing that it has not told before: its options and model make 11 kB.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import fairseq_cli.train
import torch.distributed as dist
from fairseq import checkpoint_utils, tasks
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.trainer import Trainer

from fairseq_ray_plugin.assignment import Assignment
from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import agreement, unusable
from fairseq_ray_plugin.training.gate import Gate
from fairseq_ray_plugin.training.refusal import Refused

logger = logging.getLogger(__name__)

TALK_S = 5.0
"""What goes on for longer is told, again and again."""


class Beginning:
    """What a rank does before its first update."""

    def __init__(self, assignment: Assignment, gate: Gate) -> None:
        self._assignment, self._gate = assignment, gate
        self._is_first = assignment.generation == 1
        self._doing = "starting"
        self._since = time.monotonic()
        self._is_over = threading.Event()

    def begin(self) -> None:
        """From now on it is told what goes on, of a restart nothing else."""
        if not self._is_first:
            logging.disable(logging.INFO)
            warnings.filterwarnings("ignore", module=r"(torch|fairseq|fairseq_ray_plugin)\b")
        if self._assignment.rank == 0:
            threading.Thread(target=self._talk, daemon=True).start()

    def end_of_silence(self) -> None:
        """Training goes on, or the validation that was due."""
        logging.disable(logging.NOTSET)

    def end(self) -> None:
        """The first update is complete."""
        self._is_over.set()

    @property
    def is_over(self) -> bool:
        return self._is_over.is_set()

    @contextlib.contextmanager
    def stage(self, doing: str) -> Iterator[None]:
        """Something that may take long.

        Raises:
            Refused: it cannot be done, and another try cannot change that; only in a run's first
                generation: a node that comes later without the data is left out, as any that fails.
        """
        before = self._doing
        self._doing, self._since = doing, time.monotonic()
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            reason = unusable.reason(error)
            if reason is None or not self._is_first:
                raise
            raise Refused(f"{reason} (on {socket.gethostname()})") from error
        self._doing, self._since = before, time.monotonic()

    def _talk(self) -> None:
        self._gate.wait_quietly()  # what nobody waits for is not told
        self._since = time.monotonic()
        while not self._is_over.wait(TALK_S):
            took = time.monotonic() - self._since
            if took >= TALK_S:
                text = f"still {self._doing} ({took:.0f} s)"
                # also where INFO is off
                logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, text, (), None))

    def check_group(self, trainer: Any, iterator: Any) -> None:
        """An update that is longer than an epoch would only seem to hang."""
        groups = self._assignment.groups
        if groups is None or not self._is_first or not hasattr(iterator, "frozen_batches"):
            return
        num_batches, group = len(iterator.frozen_batches), max(groups)
        if group > num_batches:
            of_each = trainer.cfg.dataset.batch_size or trainer.cfg.dataset.max_tokens
            raise Refused(
                f"--fix-batch-size makes {group} mini-batches an update, and an epoch of the "
                f"training data has {num_batches}: take {num_batches * of_each} or less"
            )

    def check_dictionaries(self, task: Any, data: str) -> None:
        """Other words behind the same numbers are another training.

        Raises:
            Refused: in a run's first generation, on every rank.
            ValueError: later, on a rank that has other ones than most.
        """
        if self._assignment.world_size == 1:
            return
        mine = fingerprint(task)
        all_ranks: list[Any] = [None] * self._assignment.world_size
        dist.all_gather_object(all_ranks, (mine, socket.gethostname()))
        odd = agreement.odd_ones([value for value, _ in all_ranks])
        if not odd:
            return
        usual = agreement.usual([value for value, _ in all_ranks])
        hosts = sorted({host for value, host in all_ranks if value != usual})
        text = (
            f"the dictionaries in {data} are not the same on all nodes: {odd} (on "
            f"{', '.join(hosts)}) has others than the rest"
        )
        if self._is_first:
            raise Refused(text)
        if mine != usual:
            raise ValueError(text)


def fingerprint(task: Any) -> int:
    """Of all dictionaries of a task, in their order."""
    dictionaries = list((getattr(task, "dicts", None) or {}).values())
    for name in ("source_dictionary", "target_dictionary"):
        with contextlib.suppress(AttributeError, NotImplementedError):
            dictionaries.append(getattr(task, name))
    total = 0
    for dictionary in dictionaries:
        symbols = getattr(dictionary, "symbols", None) or ()
        total = zlib.crc32("\n".join(symbols).encode("utf-8", "surrogatepass"), total)
    return total


def add_beginning_hook(assignment: Assignment, gate: Gate) -> None:
    """Patch fairseq, in this process; last of all, so that it sees what the others make of it."""
    beginning = Beginning(assignment, gate)

    @patch(tasks, "setup_task")
    def setup_task(original: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        data = str(getattr(cfg, "data", ""))
        with beginning.stage(f"reading the dictionaries in {data}"):
            task = original(cfg, *args, **kwargs)
            beginning.check_dictionaries(task, data)

        @patch(type(task), "load_dataset")
        def load_dataset(original: Any, self: Any, split: str, *args: Any, **kwargs: Any) -> Any:
            with beginning.stage(f"reading {split} data in {data}"):
                return original(self, split, *args, **kwargs)

        @patch(type(task), "build_model")
        def build_model(original: Any, *args: Any, **kwargs: Any) -> Any:
            with beginning.stage("building the model"):
                return original(*args, **kwargs)

        return task

    @patch(MMapIndexedDataset, "_do_init")
    def do_init(original: Any, dataset: Any, path: str, *args: Any) -> None:
        original(dataset, path, *args)
        unusable.check_length(dataset, path)

    @patch(checkpoint_utils, "load_checkpoint")
    def load_checkpoint(original: Any, *args: Any, **kwargs: Any) -> Any:
        with beginning.stage("reading a checkpoint, if there is one"):
            return original(*args, **kwargs)

    @patch(Trainer, "get_train_iterator")
    def get_train_iterator(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with beginning.stage("making mini-batches of the training data"):
            iterator = original(trainer, *args, **kwargs)
        beginning.check_group(trainer, iterator)
        return iterator

    @patch(fairseq_cli.train, "validate")
    def validate(original: Any, *args: Any) -> Any:
        beginning.end_of_silence()
        return original(*args)

    @patch(Trainer, "train_step")
    def train_step(original: Any, *args: Any, **kwargs: Any) -> Any:
        if beginning.is_over:
            return original(*args, **kwargs)
        beginning.end_of_silence()
        with beginning.stage("at the first update"):
            result = original(*args, **kwargs)
        beginning.end()
        return result

    beginning.begin()
