"""The options that `fairseq-ray-train` adds to `fairseq-train`, and their checked values."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """What the control loop needs to know; contradictory values are refused on construction."""

    ray_address: str | None = "auto"
    """Where Ray runs; "auto": RAY_ADDRESS, else a running cluster, else a local Ray."""

    fix_batch_size: tuple[int, ...] | None = None
    """Sentences (tokens without --batch-size) in one update, by epoch; the last one repeats."""

    min_workers: int = 1
    """Training waits while fewer workers than this can be had."""

    max_workers: int | None = None
    """Room beyond this many workers is left to others; None: no limit."""

    cpus_per_worker: int = 1
    """CPUs that Ray sets aside for a worker, and the threads torch uses in it."""

    max_failures: int = 3
    """Failures in a row without a completed update in between that end the run."""

    hang_timeout: float | None = None
    """Seconds without progress that count as a hang; None: learned from the run."""

    snapshot_updates: int | None = None
    """Updates between snapshots in memory, 0 for none; None: so that they cost under 1%."""

    restart_epoch: bool = False
    """Where a position in an epoch means nothing at another size, a resize starts the epoch again.

    Always set where there can be no other size.
    """

    allow_dropped_batches: bool = False
    """With a fixed batch size, too, training goes on without a mini-batch that is too large."""

    cpu: bool = False
    """A slot is `cpus_per_worker` CPUs instead of one GPU."""

    def __post_init__(self) -> None:
        if self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(
                f"--ray-min-workers {self.min_workers} is more than "
                f"--ray-max-workers {self.max_workers}"
            )

    @classmethod
    def from_args(cls, args: argparse.Namespace, cpu: bool = False) -> ElasticConfig:
        """The configuration that parsed arguments ask for.

        Raises:
            ValueError: options contradict each other; the message names them.
        """
        return cls(
            ray_address=args.ray_address,
            fix_batch_size=args.fix_batch_size,
            min_workers=args.ray_min_workers,
            max_workers=args.ray_max_workers,
            cpus_per_worker=args.ray_cpus_per_worker,
            max_failures=args.ray_max_failures,
            hang_timeout=args.ray_hang_timeout,
            snapshot_updates=args.ray_snapshot_updates,
            allow_dropped_batches=args.ray_allow_dropped_batches,
            restart_epoch=args.ray_restart_epoch or args.ray_min_workers == args.ray_max_workers,
            cpu=cpu,
        )


def add_ray_args(
    parser: argparse.ArgumentParser, default_address: str | None = "auto"
) -> argparse._ArgumentGroup:
    """Add the group "Ray related arguments" to `parser`.

    Args:
        default_address: value of --ray-address when it is not given; None trains without Ray.
    """
    group = parser.add_argument_group("Ray related arguments")
    group.add_argument(
        "--ray-address",
        default=default_address,
        metavar="ADDRESS",
        help='"auto" (RAY_ADDRESS, else a running cluster, else a local Ray), "local" '
        f"(always a local Ray), or a cluster's HOST:PORT (default: {default_address})",
    )
    group.add_argument(
        "--ray-attach",
        default=None,
        metavar="SAVE_DIR",
        help="start nothing: follow the run on the cluster that has this save dir, until it is "
        "over; of all other options only --ray-address counts",
    )
    group.add_argument(
        "--fix-batch-size",
        type=_batch_sizes,
        default=None,
        metavar="B1,B2,...,B_N",
        help="keep the effective batch the same whatever the number of workers: B_i sentences "
        "make one update in epoch i, and B_N in all epochs after N (tokens where only "
        "--max-tokens is given); takes the place of --update-freq",
    )
    group.add_argument(
        "--ray-min-workers",
        type=_positive,
        default=1,
        metavar="N",
        help="wait while there is room for fewer workers (default: 1)",
    )
    group.add_argument(
        "--ray-max-workers",
        type=_positive,
        default=None,
        metavar="N",
        help="use no more workers (default: all the room there is)",
    )
    group.add_argument(
        "--ray-cpus-per-worker",
        type=_positive,
        default=1,
        metavar="N",
        help="CPUs of a worker, beside its GPU or, with --cpu, instead of it (default: 1)",
    )
    group.add_argument(
        "--ray-max-failures",
        type=_positive,
        default=3,
        metavar="N",
        help="end the run after N failures in a row with no update completed in between "
        "(default: 3)",
    )
    group.add_argument(
        "--ray-hang-timeout",
        type=_seconds,
        default=None,
        metavar="S",
        help="restart training that makes no progress for S seconds, validation and checkpoints "
        "included (default: 10 times the longest pause so far, at least 30 s)",
    )
    group.add_argument(
        "--ray-snapshot-updates",
        type=_count,
        default=None,
        metavar="N",
        help="put the state by in the memory of two nodes every N updates, in case that all "
        "training processes die at once; 0: never (default: as often as costs under 1%%)",
    )
    group.add_argument(
        "--ray-restart-epoch",
        action="store_true",
        help="start the epoch again after a resize where the data's order depends on the number "
        "of workers (--grouped-shuffling, --fix-batches-to-gpus, streaming data sets), which is "
        "refused otherwise",
    )
    group.add_argument(
        "--ray-allow-dropped-batches",
        action="store_true",
        help="with --fix-batch-size, too, go on without a mini-batch that is too large for a GPU's "
        "memory, as fairseq-train does; by default that is a failure, since the update would be "
        "another one",
    )
    return group


def mini_batches_per_update(
    fix_batch_size: Sequence[int], batch_size: int | None, max_tokens: int | None
) -> tuple[int, ...]:
    """How many mini-batches make one update, by epoch.

    Args:
        fix_batch_size: values of --fix-batch-size, by epoch.
        batch_size: sentences in a mini-batch (--batch-size), or None.
        max_tokens: tokens in a mini-batch (--max-tokens), or None; counts when the other is None.

    Raises:
        ValueError: a batch is not a whole number of mini-batches; the message says which would be.
    """
    per_mini_batch, option = batch_size, "--batch-size"
    if per_mini_batch is None:
        per_mini_batch, option = max_tokens, "--max-tokens"
    if per_mini_batch is None:
        raise ValueError("--fix-batch-size needs --batch-size or --max-tokens beside it")
    for total in fix_batch_size:
        if total % per_mini_batch:
            below = total // per_mini_batch * per_mini_batch
            near = " or ".join(str(n) for n in (below, below + per_mini_batch) if n)
            raise ValueError(
                f"--fix-batch-size {total} is not a multiple of {option} {per_mini_batch}: "
                f"take {near}"
            )
    return tuple(total // per_mini_batch for total in fix_batch_size)


def most_ranks(config: ElasticConfig, batch_size: int | None, max_tokens: int | None) -> int | None:
    """More workers would have nothing to do, or are not wanted; None: there is no limit.

    Args:
        batch_size, max_tokens: as for `mini_batches_per_update`, which may raise.
    """
    limits = [] if config.max_workers is None else [config.max_workers]
    if config.fix_batch_size is not None:
        limits += [max(mini_batches_per_update(config.fix_batch_size, batch_size, max_tokens))]
    return min(limits, default=None)


def refuse_sharded_states(distributed: Any) -> None:
    """What only one rank has is lost with it, and how it is cut depends on the number of ranks.

    Args:
        distributed: fairseq's DistributedTrainingConfig.

    Raises:
        ValueError: each rank would have a part of the state; the message names the option.
    """
    for option, given in (
        ("--ddp-backend fully_sharded", distributed.ddp_backend == "fully_sharded"),
        ("--zero-sharding os", distributed.zero_sharding == "os"),
    ):
        if given:
            raise ValueError(
                f"{option} gives each rank a part of the state that no other has, which is lost "
                "when its worker is, and does not fit another number of workers: leave it out, or "
                "train with fairseq-train"
            )


def last_checkpoint(checkpoint: Any) -> str:
    """Path of the checkpoint that the same command goes on from.

    Args:
        checkpoint: fairseq's CheckpointConfig.
    """
    name = f"checkpoint_last{checkpoint.checkpoint_suffix}.pt"
    return os.path.join(checkpoint.save_dir, name)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _batch_sizes(text: str) -> tuple[int, ...]:
    # fairseq writes lists by epoch as "1,2" and, in its own configs, as "[1,2]"
    return tuple(_positive(part.strip()) for part in text.strip("[]()").split(","))
