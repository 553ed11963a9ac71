"""What was run: fairseq's tasks and criterions, killed in each epoch, log the same losses.

    python benchmarks/matrix.py                    # all recipes
    python benchmarks/matrix.py masked_lm hubert   # these alone, with the log of one that fails
    python benchmarks/matrix.py --stock masked_lm  # as stock fairseq trains it, in one process

The recipes are in tests/matrix, and tests/test_matrix.py runs seven of them. A line per recipe
is added to benchmarks/matrix.jsonl, and docs/compatibility.md is made again from the newest.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
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

RESULTS = ROOT / "benchmarks" / "matrix.jsonl"
PAGE = ROOT / "docs" / "compatibility.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all when not given")
    parser.add_argument("--stock", action="store_true", help="train with stock fairseq alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {recipe.name for recipe in RECIPES}:
        parser.error(f"no recipe {sorted(unknown)}: {', '.join(r.name for r in RECIPES)}")
    chosen = [recipe for recipe in RECIPES if recipe.name in (arguments.names or recipe.name)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True)
        )
        os.environ["RAY_TMPDIR"] = folder
        address = "" if arguments.stock else stack.enter_context(faults.cluster()).address
        for number, recipe in enumerate(chosen):
            begin = time.monotonic()
            outcome = run(recipe, Path(folder), Path(folder) / str(number), address)
            seconds = time.monotonic() - begin
            print(f"{recipe.name}: {in_words(outcome)} ({seconds:.0f} s)", flush=True)
            if arguments.names and outcome.why:
                print("\n".join(outcome.log.splitlines()[-LINES:]))
            if address:
                keep(recipe, outcome, seconds)
    if address:
        write()


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


def keep(recipe: Recipe, outcome: Outcome, seconds: float) -> None:
    line = {"name": recipe.name, "date": str(datetime.date.today()), "seconds": round(seconds)}
    line |= dataclasses.asdict(dataclasses.replace(outcome, log=""))
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def write() -> None:
    """docs/compatibility.md: the newest result of each recipe."""
    with open(RESULTS, encoding="utf-8") as file:
        newest = {line["name"]: line for line in map(json.loads, file)}
    run = [(recipe, newest[recipe.name]) for recipe in RECIPES if recipe.name in newest]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("fairseq", "ray", "torch", "numpy")
    )
    days = sorted({result["date"] for _, result in run})
    lines = [
        "# Compatibility",
        "",
        f"What was run, on {' to '.join(dict.fromkeys([days[0], days[-1]]))}, with {versions} and "
        f"Python {platform.python_version()}, on CPUs: {len(run)} trainings, of which "
        f"{sum(result['same'] for _, result in run)} have the same losses through failures.",
        "",
        "`make matrix` trains each of these for two epochs, with a small model and a fixed batch: "
        "undisturbed on one worker, and again on two with loader processes, of which one is killed "
        "(`kill -9`) in each epoch. It *starts* if it trains on one worker; it *survives* if on "
        "two it ends well, after those two restarts and no other; and it has the *same losses* if "
        "loss (to 1e-4, or the last digit logged), gradient norm (1e-2), learning rate, tokens and "
        "sentences of every update were logged alike. `--ddp-backend` is the default, or what the "
        "config says.",
        "",
        "| training | task | criterion | architecture | starts | survives | same losses | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, result in run:
        ddp = f"with `{recipe.ddp}`" if recipe.ddp else ""
        notes = "; ".join(filter(None, (ddp, result["why"] and (recipe.why or result["why"]))))
        marks = ("yes" if result[key] else "no" for key in ("starts", "survives", "same"))
        cells = (recipe.name, recipe.task, recipe.criterion, recipe.arch, *marks)
        lines.append(f"| {' | '.join(cells)} | {notes} |")
    lines += ["", "Not run:", ""]
    for kind, names in MISSING.items():
        lines += [f"- {kind} `{name}`: {why}" for name, why in names.items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
