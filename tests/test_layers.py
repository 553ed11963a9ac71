"""The rooms know only what they must: imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import fairseq_ray_plugin

PACKAGE = Path(fairseq_ray_plugin.__file__).parent
PURE = (
    "options",
    "activity",
    "faults",
    "state_copy",
    "protocol",
    "assignment",
    "starting",
    "report",
    "accounting",
    "page",
    "control",
    "checkpoints",
    "heartbeats",
    "aws",
    "training.batching",
)
"""Rooms and files that load in milliseconds, with nothing but Python."""

LIGHT = ("driver", "worker.worker", "worker.forkserver", "worker.notices")
"""What a worker itself loads, and what decides: neither torch nor fairseq."""

ORDER = (
    "options",
    "activity",
    "faults",
    "state_copy",
    "protocol",
    "assignment",
    "starting",
    "report",
    "accounting",
    "control",
    "checkpoints",
    "page",
    "aws",
    "compat",
    "training",
    "checkpoint_hook",
    "worker",
    "surveyor",
    "doubts",
    "head",
    "heartbeats",
    "placing",
    "distributed",
    "metrics",
    "watching",
    "driver",
    "holding",
    "residence",
    "following",
    "connecting",
    "usage",
    "ahead",
    "early",
    "launch",
    "__main__",
)
"""A room imports only those before it."""


def imported(room: str) -> set[str]:
    """What the room's file imports, or all the files of its folder."""
    names = set()
    files = [PACKAGE / f"{room}.py", *(PACKAGE / room).glob("*.py")]
    for node in (n for f in files if f.exists() for n in ast.walk(ast.parse(f.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(ORDER) == rooms - {"__init__", "__pycache__"}


def test_a_room_imports_only_rooms_before_it():
    for module in ORDER:
        for name in imported(module):
            room = name.removeprefix("fairseq_ray_plugin.").split(".")[0]
            if name.startswith("fairseq_ray_plugin.") and room in ORDER and room != module:
                assert ORDER.index(room) < ORDER.index(module), f"{module} imports {room}"


def test_only_these_rooms_import_ray():
    # launch makes and ends the connection that the others use; Ray's autoscaler loads a file of aws
    users = {m for m in ORDER if any(n.split(".")[0] == "ray" for n in imported(m))}
    assert {
        "aws",
        "head",
        "placing",
        "distributed",
        "metrics",
        "residence",
        "following",
        "connecting",
        "ahead",
        "launch",
    } >= users


def test_only_the_driver_asks_for_decisions():
    askers = {m for m in ORDER if any("fairseq_ray_plugin.control" in n for n in imported(m))}
    # and `replay`, which decides once more
    assert {"driver", "__main__"} == askers - {"control"}


def test_pure_rooms_load_neither_ray_nor_torch_nor_fairseq():
    names = []
    for room in (*PURE, *LIGHT):
        path = PACKAGE / room.replace(".", "/")
        names += [f"{room}.{file.stem}" for file in path.glob("[a-z]*.py")] or [room]
    modules = ", ".join(f"fairseq_ray_plugin.{name}" for name in names)
    code = f"import sys, {modules}; print({{'ray', 'torch', 'fairseq'}} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "set()" == output.stdout.strip()
