"""The package on the lowest and the newest of what it stands on: writes docs/versions.md.

`make versions [VERSIONS=NAME,...]`. Each corner has an environment of its own in .versions/, made
by uv and removed afterwards. There a quarter of the tests run, and what `make roberta` runs: a
training of which a process is killed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "versions.md"
RESULTS = REPOSITORY / "benchmarks" / "versions.jsonl"
FOLDER = REPOSITORY / ".versions"
LIMIT_S = 3600

FAST = (
    "tests/test_layers.py",
    "tests/test_options.py",
    "tests/test_usage.py",
    "tests/compat/test_compat.py",
    "tests/control/test_loop.py",
    "tests/report",
    "tests/training",
    "tests/worker/test_forkserver.py",
    "tests/worker/test_notices.py",
    "tests/worker/test_worker.py",
)
WHERE_IT_APPLIES = "not fails_without_its_patch"
"""Older versions do not need every patch, and must work with it all the same."""

DEMO = "examples/roberta/demo.py"
"""Of 200 updates on two workers, one of which is killed; it looks at the losses, too."""

SURVIVED = "the failure was survived, 0 updates redone"


@dataclasses.dataclass(frozen=True)
class Corner:
    python: str
    ray: str
    torch: str
    numpy: str

    @property
    def name(self) -> str:
        return f"{self.python}-ray{self.ray}"

    @property
    def pins(self) -> list[str]:
        return [f"ray=={self.ray}", f"torch=={self.torch}", f"numpy=={self.numpy}"]


CORNERS = (
    Corner("3.10", ray="2.40.0", torch="2.4.0", numpy="1.23.5"),
    Corner("3.12", ray="2.40.0", torch="2.4.0", numpy="1.26.0"),
    Corner("3.10", ray="2.60.0", torch="2.14.1", numpy="2.2.6"),
    Corner("3.13", ray="2.60.0", torch="2.15.0", numpy="2.5.5"),
)
"""The lowest and the newest that there are for each Python; 3.11 is what the suite itself runs on,
with what constraints.txt says."""


def interpreter(version: str) -> str:
    """A Python of that version on this machine, or its number, for uv to fetch one."""
    beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for there in (f"python{version}", *map(str, beside)):
        path = shutil.which(there)
        if path and not subprocess.run([path, "-c", "import venv"], capture_output=True).returncode:
            return path
    return version


def make_environment(corner: Corner) -> Path:
    """Its Python; made anew where it is not complete.

    Raises:
        CalledProcessError: uv did not find or make what it needs; it has said why.
    """
    folder = FOLDER / corner.name
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
    subprocess.run(
        [uv, "venv", "--clear", "--python", interpreter(corner.python), str(folder)], check=True
    )
    target = [uv, "pip", "install", "-q", "--python", str(python)]
    # setup.py of fairseq asks which torch and numpy are there
    subprocess.run([*target, *corner.pins], check=True)
    subprocess.run(
        [*target, ".[aws,example,fairseq,test]", *corner.pins], check=True, cwd=REPOSITORY
    )
    (folder / "ready").touch()
    return python


def say(command: list[str], log: Path) -> tuple[int, str]:
    """The exit code of a command, run in the checkout, and what it said, which is in the log, too.

    Raises:
        TimeoutExpired: it took more than an hour.
    """
    with log.open("w") as file:
        ended = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY, timeout=LIMIT_S
        )
    return ended.returncode, log.read_text()


def run_tests(python: Path, log: Path) -> str:
    """pytest's own summary; what failed is in the log."""
    options = ["-q", "-W", "ignore", "-k", WHERE_IT_APPLIES]
    code, text = say([str(python), "-m", "pytest", *options, *FAST], log)
    last = (text.rstrip().splitlines() or [""])[-1]
    summary = re.sub(r" in [\d.]+s.*", "", last.strip("= "))
    return summary if code in (0, 1) else f"exit code {code}: {summary}"


def run_demo(python: Path, log: Path) -> str:
    """What became of the training, by the demonstration's own account."""
    # its data is of that Python's own texts
    shutil.rmtree(REPOSITORY / "build" / "roberta", ignore_errors=True)
    _, text = say([str(python), DEMO], log)
    account = dict(re.findall(r"^([a-z ]{15}) (.*)$", text, re.MULTILINE))
    told = {key.strip(): value for key, value in account.items()}
    if "result" not in told:
        return "no account"
    return f"{told['result']}, {told.get('updates redone', 'no')} updates redone"


def run(corner: Corner) -> bool:
    """Its line is added to the results; whether all passed."""
    tests = demo = "not run"
    try:
        python = make_environment(corner)
        tests = run_tests(python, FOLDER / f"{corner.name}-tests.txt")
        demo = run_demo(python, FOLDER / f"{corner.name}-demo.txt")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{corner.name}: {error}", file=sys.stderr)
    shutil.rmtree(FOLDER / corner.name, ignore_errors=True)
    date = datetime.date.today().isoformat()
    line = {"date": date, **dataclasses.asdict(corner), "tests": tests, "demo": demo}
    print(line, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    all_pass = re.fullmatch(r"\d+ passed(, \d+ (skipped|deselected))*", tests)
    return all_pass is not None and demo == SURVIVED


def write() -> None:
    """The newest result of each corner, in the page's table."""
    newest = {}
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        newest[line["python"], line["ray"]] = line
    rows = [
        "| run on | Python | ray | torch | numpy | tests | a training, a process of it killed |"
    ]
    rows += ["|---|---|---|---|---|---|---|"]
    for _, line in sorted(newest.items()):
        keys = ("date", "python", "ray", "torch", "numpy", "tests", "demo")
        rows.append("| " + " | ".join(line[key] for key in keys) + " |")
    before, after = re.split(r"\| run on .*?\|\n(?!\|)", PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(before + "\n".join(rows) + "\n" + after)


def main() -> int:
    """All corners, or those that are named in VERSIONS; 1 where one of them has not passed."""
    wanted = [name for name in os.environ.get("VERSIONS", "").split(",") if name]
    passed = [run(corner) for corner in CORNERS if not wanted or corner.name in wanted]
    write()
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
