"""Who can install the package, and from what: writes the table of docs/install.md.

`python benchmarks/installs.py [NAME ...]`, with the Python whose pips are tried, uv and a C++
compiler. Each line of the table is a new environment in .installs/, which is removed afterwards.
The commands are tried from outside of the checkout, and a training of which a process is killed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import pydoc_data.topics
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "install.md"
RESULTS = REPOSITORY / "benchmarks" / "installs.jsonl"
FOLDER = REPOSITORY / ".installs"
LIMIT_S = 1800

PIPS = ("23.0.1", "23.3.2", "24.0", "24.1.2", "25.3", "26.3")
FAIRSEQS = ("fairseq", "fairseq-fixed")
LARGE = ("numpy", "ray", "torch")
"""uv puts them there before a pip is tried, in seconds: their wheels are every pip's."""

UPDATES = 100

TRAINING = (
    *("--cpu", "--ray-address", "local", "--ray-max-workers", "2", "--fix-batch-size", "16"),
    *("--task", "masked_lm", "--criterion", "masked_lm", "--tokens-per-sample", "64"),
    *("--arch", "roberta_base", "--encoder-layers", "2", "--encoder-attention-heads", "2"),
    *("--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--optimizer", "adam", "--lr", "0.001", "--batch-size", "4", "--num-workers", "0"),
    *("--max-update", str(UPDATES), "--log-format", "simple", "--disable-validation"),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    installer: str
    """pip's version, or "uv"."""
    source: str
    """wheel, sdist or checkout."""
    extra: str
    """Which fairseq."""

    @property
    def name(self) -> str:
        return f"{self.installer}-{self.source}-{self.extra}"


TRIALS = (
    *(Trial(pip, "wheel", extra) for extra in FAIRSEQS for pip in PIPS),
    *(Trial("24.0", source, "fairseq") for source in ("sdist", "checkout")),
    *(Trial(PIPS[-1], source, "fairseq-fixed") for source in ("sdist", "checkout")),
    *(Trial("uv", source, "fairseq") for source in ("wheel", "sdist", "checkout")),
    Trial("uv", "wheel", "fairseq-fixed"),
)


class Failed(Exception):
    """A command did not end well; the message is the line that says why."""


def outside() -> dict[str, str]:
    """The environment of commands that must not find the checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def call(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """What it printed.

    Raises:
        Failed: it ended with an exit code.
    """
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=outside(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    if ended.returncode:
        raise Failed(why(ended.stdout) or f"exit code {ended.returncode}")
    return ended.stdout


def why(output: str) -> str:
    """The line of a failed command's output that says most."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\s*(ERROR|error|×)", line)]
    return (errors or lines or [""])[-1].strip()


def uv() -> str:
    return shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"


def sources() -> dict[str, str]:
    """What is installed, by kind; wheel and sdist are built once."""
    built = FOLDER / "built"
    if not built.exists():
        call(uv(), "build", "--out-dir", built)
    ((wheel,), (sdist,)) = (list(built.glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    return {"wheel": str(wheel), "sdist": str(sdist), "checkout": "."}


def install(trial: Trial, environment: Path) -> None:
    what = f"{sources()[trial.source]}[{trial.extra}]"
    python = environment / "bin" / "python"
    if trial.installer == "uv":
        call(uv(), "venv", "--clear", "--python", sys.executable, environment)
        call(uv(), "pip", "install", "--python", python, what)
        return
    call(sys.executable, "-m", "venv", "--clear", environment)
    call(uv(), "pip", "install", "--python", python, *LARGE)
    call(python, "-m", "pip", "install", f"pip=={trial.installer}")
    call(python, "-m", "pip", "install", what)


def ask(environment: Path) -> str:
    """The commands answer outside of the checkout, fairseq's parser too; returns the versions.

    Raises:
        Failed: one of them does not.
    """
    command = environment / "bin" / "fairseq-ray-train"
    for option in ("--help-ray", "--help"):
        if "--fix-batch-size" not in call(command, option, cwd=FOLDER):
            raise Failed(f"{option} does not show our options")
    return call(command, "--version", cwd=FOLDER).splitlines()[-1]


def make_data(environment: Path, folder: Path) -> None:
    """Binarized by the tool under test, of texts that every Python has."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    for split, part in (("train", words[:8000]), ("valid", words[8000:9000])):
        lines = (" ".join(part[start : start + 20]) for start in range(0, len(part), 20))
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    tool = (environment / "bin" / "python", "-m", "fairseq_ray_plugin", "preprocess")
    prefixes = ("--trainpref", "train.txt", "--validpref", "valid.txt", "--destdir", "data")
    call(*tool, "--only-source", *prefixes, "--workers", "1", cwd=folder)


def train(environment: Path) -> None:
    """A small training outside of the checkout; after its first update a rank is killed.

    Raises:
        Failed: it did not end well, or never stopped because of the kill.
    """
    folder = FOLDER / "outside"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_data(environment, folder)
    command = [environment / "bin" / "fairseq-ray-train", "data", *TRAINING, "--save-dir", "save"]
    log = folder / "log"
    with log.open("w") as file:
        training = subprocess.Popen(
            command, cwd=folder, env=outside(), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        killed = kill_a_rank(training, folder / "save")
        code = training.wait(LIMIT_S)
    finally:
        training.kill()
    if code or not (folder / "save" / "checkpoint_last.pt").exists():
        raise Failed(why(log.read_text()) or f"exit code {code}")
    stops = [event for event in events(folder / "save") if event["kind"] == "stopped"]
    if killed is None or not stops:
        raise Failed("no killed process was noticed")


def kill_a_rank(training: subprocess.Popen, save_dir: Path) -> int | None:
    """Its process id; None where training was over before there was one."""
    while training.poll() is None:
        happened = events(save_dir)
        if any(event["kind"] == "advanced" for event in happened):
            [started] = [event for event in happened if event["kind"] == "started"]
            pid = started["ranks"][-1]["pid"]
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.05)
    return None


def events(save_dir: Path) -> list[dict]:
    """The run's journal, without a last line that is being written."""
    journal = save_dir / "elastic.jsonl"
    text = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run(trial: Trial) -> None:
    """Its line is added to the results; its environment is removed."""
    environment = FOLDER / trial.name
    result = {"installs": "no", "answers": "", "trains": "", "error": ""}
    try:
        install(trial, environment)
        result |= {"installs": "yes", "answers": "no"}
        result |= {"answers": "yes", "versions": ask(environment)}
        result["trains"] = "no"
        train(environment)
        result["trains"] = "yes"
    except Failed as error:
        result["error"] = str(error)
    shutil.rmtree(environment, ignore_errors=True)
    line = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **dataclasses.asdict(trial),
        **result,
    }
    print(line, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def write() -> None:
    """The newest result of each trial, in the page's table; pips that did the same share a line."""
    newest = {}
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        newest[line["installer"], line["source"], line["extra"]] = line
    lines: dict[tuple[str, ...], list[str]] = {}
    for trial in TRIALS:
        if (trial.installer, trial.source, trial.extra) not in newest:
            continue
        line = newest[trial.installer, trial.source, trial.extra]
        keys = ("date", "extra", "source", "installs", "answers", "trains", "error")
        outcome = tuple(line[key] for key in keys)
        tool = "uv" if trial.installer == "uv" else "pip"
        lines.setdefault((tool, *outcome), []).append(trial.installer)
    rows = [
        "| run on | with | extra | from | installs | answers | trains | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (tool, date, extra, *outcome, error), installers in lines.items():
        who = "uv" if tool == "uv" else f"pip {', '.join(installers)}"
        error = f"`{error.partition(': for help visit')[0]}`" if error else ""
        rows.append(f"| {' | '.join([date, who, f'`{extra}`', *outcome, error])} |")
    before, after = re.split(r"\| run on \|.*?\|\n(?!\|)", PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(before + "\n".join(rows) + "\n" + after)


if __name__ == "__main__":
    for trial in TRIALS:
        if len(sys.argv) == 1 or trial.name in sys.argv[1:]:
            run(trial)
    write()
