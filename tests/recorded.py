"""What a run has left in the user's own logs: points by tag and update."""

import collections
import json
import re
from pathlib import Path

CHANGES = ("wps", "ups", "wall", "train_wall", "gb_free")
"""What is logged that is time's, and differs from run to run."""


def tensorboard(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """By tag and name: updates and values, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        there = EventAccumulator(str(path), {"scalars": 0})
        there.Reload()
        for name in there.Tags()["scalars"]:
            if name not in CHANGES:
                points[path.name, name] = [(e.step, e.value) for e in there.Scalars(name)]
    return points


def json_lines(text: str) -> dict[tuple[int, str], list[dict]]:
    """By update and kind (`loss`, `train_loss`, `valid_loss`): what lines of JSON say."""
    points = collections.defaultdict(list)
    for line in text.splitlines():
        if not line.startswith('{"'):
            continue
        values = json.loads(line)
        kind = next(key for key in values if key.endswith("loss"))
        update = int(next(value for key, value in values.items() if key.endswith("num_updates")))
        kept = {k: v for k, v in values.items() if not k.endswith(CHANGES)}
        points[update, kind].append(kept)
    return dict(points)


def simple_lines(text: str) -> list[str]:
    """Lines with an update's number, without what is time's."""
    lines = [line for line in text.splitlines() if re.search(r"num_updates[= ]\d", line)]
    return [re.sub(rf"\b({'|'.join(CHANGES)})[= ][\d.]+", "", line) for line in lines]


def wandb(folder: Path) -> tuple[set[str], dict[tuple[int, str], set[float]], list[int | None]]:
    """The runs' ids; by update and name the values; and each process's exit code."""
    import wandb_file

    names, points, codes = set(), collections.defaultdict(set), []
    for name, rows, code in wandb_file.runs(folder / "wandb"):
        names |= {name} - {None}
        codes.append(code)
        for row in rows:
            for key, value in row.items():
                if not key.startswith("_") and not key.endswith(CHANGES):
                    points[row["_step"], key].add(value)
    return names, dict(points), codes
