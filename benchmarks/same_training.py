"""Draws docs/same-training.svg: a run on one worker, and one that the cluster did its worst to.

    python benchmarks/same_training.py

Both train the same masked language model on Python's own manual, with a fixed batch. The second
goes from 1 to 3 workers, loses a training process, then a node, then another one.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402  sets Ray's environment
import data  # noqa: E402
import runs  # noqa: E402

MODEL = (
    *(*data.MASKED_LM, "--tokens-per-sample", "128", "--batch-size", "8"),
    *("--fix-batch-size", "32", "--num-workers", "1", "--max-epoch", "12"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        alone, disturbed = train(Path(folder))
        draw(alone, disturbed, ROOT / "docs" / "same-training.svg")
        compare(alone, disturbed)


def train(folder: Path) -> tuple[runs.Run, runs.Run]:
    """The two runs."""
    import os

    from ray.cluster_utils import Cluster

    os.environ["RAY_TMPDIR"] = str(folder)
    text = data.english_text(folder / "english")
    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = conftest.Nodes(Cluster(initialize_head=True, head_node_args=head))
    try:
        nodes.add()
        alone = runs.ray_train(folder / "alone", text, MODEL, address=nodes.address).finish()
        disturbed = runs.ray_train(
            folder / "disturbed", text, MODEL, address=nodes.address, pause_s=0.1
        )
        disturbed.until_update(40)
        nodes.add()
        nodes.add()
        three = disturbed.until_advanced(world_size=3, after=0)
        disturbed.until_update(disturbed.steps()[-1]["update"] + 40)
        runs.kill(disturbed.ranks()[1]["pid"])
        three = disturbed.until_advanced(world_size=3, after=three)
        for world_size in (2, 1):
            disturbed.until_update(disturbed.steps()[-1]["update"] + 40)
            nodes.kill(nodes.of(disturbed.ranks()[-1]["node"]))
            disturbed.until_advanced(world_size=world_size, after=three)
        return alone, disturbed.finish()
    finally:
        nodes.cluster.shutdown()


def draw(alone: runs.Run, disturbed: runs.Run, path: Path) -> None:
    """The two curves, one over the other, and the second one's world size below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "same"
    from matplotlib import pyplot

    figure, (losses, sizes) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 4.5), height_ratios=(4, 1), layout="constrained"
    )
    updates = range(1, len(alone.losses()) + 1)
    losses.plot(updates, alone.losses(), color="0.75", linewidth=5, label="1 worker, undisturbed")
    losses.plot(updates, disturbed.losses(), color="C3", linewidth=1, label="1, 3, 2, 1 workers")
    losses.set_ylabel("loss of each update")
    losses.legend()
    world = {step["update"]: step["world"] for step in disturbed.steps()}
    sizes.step(sorted(world), [world[update] for update in sorted(world)], color="C3", where="mid")
    sizes.set(ylabel="workers", xlabel="update", yticks=(1, 2, 3), ylim=(0.5, 3.5))
    stops = {event["update"] for event in disturbed.events("stopped")}
    for axes in (losses, sizes):
        for update in stops:
            axes.axvline(update, color="0.5", linewidth=0.6, linestyle=":")
    figure.savefig(path, metadata={"Date": None})


def compare(alone: runs.Run, disturbed: runs.Run) -> None:
    """How equal they are, for docs/same-training.md."""
    pairs = list(zip(alone.curve().values(), disturbed.curve().values(), strict=True))

    def largest(column: int) -> float:
        return max(abs(float(a[column]) / float(b[column]) - 1) for a, b in pairs)

    for event in disturbed.events("stopped"):
        print(event["update"], event["cause"].splitlines()[0])
    print(f"{len(pairs)} updates")
    print(f"sample ids of every update equal: {alone.samples() == disturbed.samples()}")
    print(f"largest relative difference of the loss {largest(0):.1e}, of the norm {largest(1):.1e}")
    print(f"learning rate, tokens, sentences equal: {all(a[2:] == b[2:] for a, b in pairs)}")
    print(f"updates redone: {disturbed.redone()}")


if __name__ == "__main__":
    main()
