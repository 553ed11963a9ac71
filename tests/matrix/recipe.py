"""A training that is supported because it was run: undisturbed on one worker, and killed on two."""

import dataclasses
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import data as data_module
import fairseq
import runs

EXAMPLES = Path(fairseq.__file__).parent / "examples"
BIN = Path(sys.executable).parent

COMMON = (
    *("--cpu", "--seed", "7", "--log-format", "json", "--log-interval", "1"),
    *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0"),
    *("--lr", "1e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "8"),
    *("--max-epoch", "2", "--no-epoch-checkpoints"),
)
HYDRA_COMMON = (
    *("common.cpu=true", "common.fp16=false", "common.seed=7"),
    *("common.log_format=json", "common.log_interval=1"),
    *("optimization.max_epoch=2", "checkpoint.no_epoch_checkpoints=true"),
)


KEYS = ("loss", "gnorm", "lr", "wpb", "bsz")
LIMITS = {"loss": 1e-4, "gnorm": 1e-2}
"""What may differ as floats are added in another order; the rest is logged alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training; `{data}` in an option is the folder of its data."""

    name: str
    task: str
    criterion: str
    arch: str
    data: Callable[[Path], None] | None
    """Makes what it trains on, in an empty folder; None: its data is made up as it trains."""

    inside: str = ""
    """What in that folder the task is given, where it is not the folder."""

    batch: int
    """--fix-batch-size: 3 mini-batches, which 2 workers cannot share evenly."""

    options: str = ""
    """As in a shell; hydra's overrides for a config."""

    config: str | None = None
    """For hydra: a file below fairseq/examples, or "" for fairseq's own; else a command line."""

    user_dirs: tuple[str, ...] = ()
    """Folders below fairseq/examples that --user-dir would name."""

    ddp: str = ""
    """Options that the gradients of its model want, with stock fairseq too."""

    loaders: int = 1
    """Loader processes of a disturbed rank (--num-workers)."""

    quick: bool = False
    """It is one of those that `make test` runs."""

    why: str = ""
    """What keeps it from working, where more is known than it says itself."""

    def options_in(self, data: Path) -> list[str]:
        return [
            option.replace("{data}", str(data))
            for option in shlex.split(f"{self.options} {self.ddp}")
        ]

    def user_dir(self, folder: Path) -> Path:
        """The recorder; and with it, as fairseq takes one --user-dir only, those of the recipe."""
        if not self.user_dirs:
            return runs.RECORDER
        both = folder / "code" / "recorder_and_more"
        both.mkdir(parents=True)
        paths = [str(runs.RECORDER), *(str(EXAMPLES / name) for name in self.user_dirs)]
        (both / "__init__.py").write_text(
            "import argparse\n"
            "from fairseq.utils import import_user_module\n"
            f"for path in {paths}:\n"
            "    import_user_module(argparse.Namespace(user_dir=path))\n"
        )
        return both

    def environment(self, folder: Path) -> list[str]:
        """In fairseq's own checkout `examples` can be imported, and some of them count on it."""
        if not self.user_dirs:
            return []
        (folder / "code" / "examples").symlink_to(EXAMPLES)
        path = data_module.environment()["PYTHONPATH"]
        return ["env", f"PYTHONPATH={path}:{folder / 'code'}"]

    def command_line(self, data: Path, folder: Path, loaders: int) -> list[str]:
        """The options of `fairseq-train`, or the overrides of `fairseq-hydra-train`."""
        save_dir, user_dir = folder / "save", self.user_dir(folder)
        if self.config is None:
            return [
                *((str(data / self.inside),) if self.data else ()),
                *(*COMMON, "--user-dir", str(user_dir)),
                *("--task", self.task, "--criterion", self.criterion, "--arch", self.arch),
                *("--save-dir", str(save_dir), "--num-workers", str(loaders)),
                *self.options_in(data),
            ]
        config = EXAMPLES / self.config
        return [
            *(("--config-dir", str(config.parent)) if self.config else ()),
            *(("--config-name", config.stem) if self.config else ()),
            *(f"hydra.run.dir={save_dir}", *HYDRA_COMMON, f"common.user_dir={user_dir}"),
            *(f"checkpoint.save_dir={save_dir}", f"dataset.num_workers={loaders}"),
            *self.options_in(data),
        ]

    def start(self, folder: Path, data: Path, *ours: object, loaders: int, faults=None) -> runs.Run:
        """It trains on Ray; `ours` are options of this package."""
        command = BIN / ("fairseq-ray-train" if self.config is None else "fairseq-ray-hydra-train")
        ours = ("--fix-batch-size", self.batch, *ours)
        line = self.command_line(data, folder, loaders)
        return runs.Run(folder, [*self.environment(folder), command, *ours, *line], faults)

    def start_stock(self, folder: Path, data: Path, *more: str) -> runs.Run:
        """Stock fairseq trains it, in one process."""
        tool = "train" if self.config is None else "hydra_train"
        line = self.command_line(data, folder, loaders=0)
        if self.config is not None:
            more = ("distributed_training.distributed_world_size=1", *more)
        python = [*self.environment(folder), sys.executable, "-m", "fairseq_ray_plugin"]
        return runs.Run(folder, [*python, tool, *line, *more])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was seen of a recipe; the first step that failed says why."""

    starts: bool = False
    survives: bool = False
    same: bool = False
    why: str = ""
    log: str = ""
    updates: int = 0


def check(recipe: Recipe, data: Path, folder: Path, address: str) -> Outcome:
    """Train on one worker, then on two of which one is killed in each epoch, and compare."""
    cluster = ("--ray-address", address)
    alone = recipe.start(folder / "alone", data, *cluster, "--ray-max-workers", 1, loaders=0)
    if why := failure(alone):
        return Outcome(why=why, log=alone.tail())
    curve, epochs = alone.curve(*KEYS), alone.curve("epoch")
    try:
        first, second = (_middle(epochs, number) for number in (1, 2))
    except ValueError as error:
        return Outcome(why=str(error), log=alone.tail())
    kills = [
        {"rank": 1, "update": first, "where": "all_reduce", "what": "SIGKILL"},
        {"rank": 0, "update": second, "where": "forward", "what": "SIGKILL"},
    ]
    killed = recipe.start(
        folder / "killed",
        data,
        *(*cluster, "--ray-min-workers", 2),
        loaders=recipe.loaders,
        faults=kills,
    )
    outcome = Outcome(starts=True, log=killed.tail(), updates=len(curve))
    if why := failure(killed) or _other_restarts(killed, [first, second]):
        return dataclasses.replace(outcome, why=why, log=killed.tail())
    difference = compare(curve, killed.curve(*KEYS))
    return dataclasses.replace(
        outcome, survives=True, same=not difference, why=difference, log=killed.tail()
    )


def failure(run: runs.Run) -> str:
    """Why the run did not end well, in a line; empty if it did."""
    try:
        run.finish()
    except AssertionError as error:
        said = [line for line in run.lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        said += [line for line in run.lines if "error: " in line or "| ERROR |" in line]
        said += [event["cause"].strip().splitlines()[-1] for event in run.events("failed")]
        # no paths of this machine
        return re.sub(r"/\S*/", "", (said or [str(error).splitlines()[0]])[-1])[:200]
    return ""


def _middle(epochs: dict[int, tuple], epoch: int) -> int:
    """An update in the middle of an epoch."""
    updates = [update for update, (number,) in epochs.items() if number == epoch]
    if len(updates) < 4:
        raise ValueError(f"epoch {epoch} has {len(updates)} updates, too few to disturb")
    return updates[len(updates) // 2]


def _other_restarts(run: runs.Run, kills: list[int]) -> str:
    """What restarted the run beside the kills in these updates, or another number of workers."""
    stops = [(event["update"], event["cause"]) for event in run.events("stopped")]
    # where all gradients were there, the other rank has completed the update
    if len(stops) != len(kills) or any(
        kill - held not in (0, 1) or "killed by SIGKILL" not in cause
        for kill, (held, cause) in zip(kills, stops, strict=True)
    ):
        return f"killed in updates {kills}, and restarted: {stops}"
    sizes = {event["world_size"] for event in run.events("started")}
    return "" if sizes == {2} else f"trained on {sizes} workers"


def compare(expected: dict[int, tuple], actual: dict[int, tuple]) -> str:
    """The first update that was logged differently, and how; empty: they are the same training.

    Loss: 1e-4, or the last digit logged; gradient norm, which is sensitive to the order of sums:
    1e-2, or the last digit; learning rate, tokens and sentences as logged.
    """
    if expected.keys() != actual.keys():
        return f"{len(expected)} updates on one worker, {len(actual)} on two"
    for update, values in expected.items():
        for key, one, two in sorted(zip(KEYS, values, actual[update], strict=True), reverse=True):
            limit = LIMITS.get(key)
            if not (_near(float(one), float(two), limit) if limit else one == two):
                return f"{key} of update {update}: {one} on one worker, {two} on two"
    return ""


def _near(one: float, two: float, relative: float) -> bool:
    return abs(one - two) <= max(relative * abs(one), 1.01e-3)


def data_of(recipe: Recipe, folder: Path) -> Path:
    """What the recipe trains on, made when a first recipe asks for it."""
    if recipe.data is None:
        return folder
    data = folder / recipe.data.__name__
    if not data.exists():
        data.mkdir(parents=True)
        recipe.data(data)
    return data


def train_once(recipe: Recipe, data: Path, folder: Path) -> None:
    """`folder` holds a checkpoint of the recipe after one update, for others to begin with."""
    option = "--max-update=1" if recipe.config is None else "optimization.max_update=1"
    with tempfile.TemporaryDirectory(dir=folder.parent) as run:
        recipe.start_stock(Path(run), data, option).finish().save_dir.rename(folder)


def check_stock(recipe: Recipe, data: Path, folder: Path) -> Outcome:
    """Does stock fairseq train it, in one process?"""
    run = recipe.start_stock(folder, data)
    why = failure(run)
    return Outcome(starts=not why, why=why, log=run.tail(), updates=len(run.curve()))
