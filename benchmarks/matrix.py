"""What was run: fairseq's tasks and criterions, killed in each epoch, log the same losses.

    python benchmarks/matrix.py                    # all recipes; writes docs/compatibility.md
    python benchmarks/matrix.py masked_lm hubert   # these alone, with the log of one that fails
    python benchmarks/matrix.py --stock masked_lm  # as stock fairseq trains it, in one process

The recipes are in tests/matrix, and tests/test_matrix.py runs a dozen of them.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest  # noqa: E402, F401  sets Ray's environment, and makes fairseq importable
import faults  # noqa: E402
from matrix import MISSING, RECIPES  # noqa: E402
from matrix.recipe import Outcome, Recipe, check, check_stock, data_of  # noqa: E402

LINES = 15
"""Of the log of a recipe that fails."""

PAGE = ROOT / "docs" / "compatibility.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all when not given")
    parser.add_argument("--stock", action="store_true", help="train with stock fairseq alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {recipe.name for recipe in RECIPES}:
        parser.error(f"no recipe {sorted(unknown)}: {', '.join(r.name for r in RECIPES)}")
    chosen = [recipe for recipe in RECIPES if recipe.name in (arguments.names or recipe.name)]
    outcomes = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True)
        )
        os.environ["RAY_TMPDIR"] = folder
        address = "" if arguments.stock else stack.enter_context(faults.cluster()).address
        for number, recipe in enumerate(chosen):
            begin = time.monotonic()
            outcomes.append(run(recipe, Path(folder), Path(folder) / str(number), address))
            seconds = time.monotonic() - begin
            print(f"{recipe.name}: {in_words(outcomes[-1])} ({seconds:.0f} s)", flush=True)
            if arguments.names and outcomes[-1].why:
                print("\n".join(outcomes[-1].log.splitlines()[-LINES:]))
    if not arguments.names and not arguments.stock:
        write(outcomes)


def run(recipe: Recipe, folder: Path, here: Path, address: str) -> Outcome:
    """What is seen of a recipe on a cluster, or without one by stock fairseq."""
    try:
        data = data_of(recipe, folder / "data")
    except AssertionError as error:
        return Outcome(why="its data needs a training that fails", log=str(error))
    if not address:
        return check_stock(recipe, data, here)
    return check(recipe, data, here, address)


def in_words(outcome: Outcome) -> str:
    return f"{outcome.updates} updates" + (f"; {outcome.why}" if outcome.why else "")


def write(outcomes: list[Outcome]) -> None:
    """docs/compatibility.md: the table of all recipes."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("fairseq", "ray", "torch", "numpy")
    )
    same = sum(outcome.same for outcome in outcomes)
    lines = [
        "# Compatibility",
        "",
        f"What was run, on {datetime.date.today()}, with {versions} and Python "
        f"{platform.python_version()}, on CPUs: {len(outcomes)} trainings, of which {same} log the "
        "same losses.",
        "",
        "`make matrix` trains each of these for two epochs with a small model and a fixed batch: "
        "undisturbed on one worker, and again on two with loader processes, of which one is killed "
        "(`kill -9`) in each epoch. It *starts* if it trains on one worker; it *survives* if on "
        "two it ends well, with those two restarts and no other; and it has the *same losses* if "
        "loss (to 1e-4 or the last digit logged), gradient norm (1e-2), learning rate, tokens and "
        "sentences of every update were logged alike. `--ddp-backend` is the default.",
        "",
        "| training | task | criterion | architecture | starts | survives | same losses | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, outcome in zip(RECIPES, outcomes, strict=True):
        why = recipe.why or outcome.why if not outcome.same else ""
        marks = (outcome.starts, outcome.survives, outcome.same)
        cells = (recipe.name, recipe.task, recipe.criterion, recipe.arch)
        cells = (*cells, *("yes" if mark else "no" for mark in marks), why.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Not run:", ""]
    for kind, names in MISSING.items():
        lines += [f"- {kind} `{name}`: {why}" for name, why in names.items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
