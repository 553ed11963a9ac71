"""``python -m fairseq_ray_plugin TOOL ...`` runs a stock fairseq tool on current Python and torch.

It is ``fairseq-TOOL ...`` with ``compat`` applied, in this process and without Ray; and ``run
SCRIPT ...`` is ``python SCRIPT ...``, for any script that imports fairseq. ``replay FILE`` shows
what the control loop decides on the observations of a recorded run; ``checkpoints SAVE_DIR`` lists
the checkpoints there, and whether they are whole; ``report SAVE_DIR`` says where
a run's time went; ``dashboard`` prints one for Grafana; ``aws`` prepares an account for ``ray up``.
"""

import importlib
import importlib.resources
import os
import runpy
import sys
import tempfile

from fairseq_ray_plugin import compat

TOOLS = {
    "preprocess": "build vocabularies and binarize text",
    "train": "train a model, without Ray (with Ray: fairseq-ray-train)",
    "validate": "compute a model's validation loss",
    "generate": "translate binarized text",
    "interactive": "translate text from standard input",
    "eval_lm": "compute a language model's perplexity",
    "score": "compute BLEU",
    "hydra_train": "train a model that is configured by hydra, without Ray",
}


def main() -> int | None:
    """The tool or script named by the first arguments has run with the other arguments."""
    tool = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if tool in ("-h", "--help"):
        print("usage: python -m fairseq_ray_plugin TOOL ...\n\nstock fairseq tools:")
        for name, purpose in TOOLS.items():
            print(f"  {name:12} {purpose}")
        print("\npython -m fairseq_ray_plugin TOOL --help lists a tool's own options")
        print("python -m fairseq_ray_plugin run SCRIPT ...    runs a script that imports fairseq")
        print("python -m fairseq_ray_plugin run -m MODULE ... runs such a module")
        print("python -m fairseq_ray_plugin replay FILE       decides a recorded run once more")
        print(
            "python -m fairseq_ray_plugin checkpoints SAVE_DIR  reads checkpoints, and lists them"
        )
        print("python -m fairseq_ray_plugin report SAVE_DIR   says where a run's time went")
        print("python -m fairseq_ray_plugin dashboard         prints a dashboard for Grafana")
        print("python -m fairseq_ray_plugin aws prepare|check|clean  what ray up needs on AWS")
        return 0
    if tool == "replay":
        return replay(sys.argv[2:])
    if tool == "checkpoints":
        return checkpoints(sys.argv[2:])
    if tool == "report":
        from fairseq_ray_plugin.page import command

        return command.main(sys.argv[2:])
    if tool == "dashboard":
        there = importlib.resources.files("fairseq_ray_plugin.page") / "dashboard.json"
        print(there.read_text(), end="")
        return 0
    if tool == "aws":
        from fairseq_ray_plugin.aws import command as aws_command

        return aws_command.main(sys.argv[2:])
    compat.apply()
    if tool == "run":
        return run(sys.argv[2:])
    module = tool.replace("-", "_")
    if module not in TOOLS:
        tools = ", ".join(TOOLS)
        print(f"fairseq_ray_plugin: no tool {tool!r}; the tools are {tools}, run", file=sys.stderr)
        return 2
    compat.require_fairseq()
    sys.argv = ["fairseq-" + module.replace("_", "-"), *sys.argv[2:]]
    return importlib.import_module(f"fairseq_cli.{module}").cli_main()


def run(arguments: list[str]) -> int | None:
    """A script, or with -m a module, has run as ``__main__``, as Python itself would run it."""
    if not arguments or arguments == ["-m"]:
        print("usage: python -m fairseq_ray_plugin run [-m] SCRIPT ...", file=sys.stderr)
        return 2
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def replay(arguments: list[str]) -> int:
    """What was observed in a recorded run, and what the control loop decides today."""
    from fairseq_ray_plugin.control import recording

    if len(arguments) != 1:
        print("usage: python -m fairseq_ray_plugin replay FILE", file=sys.stderr)
        return 2
    num_moments = num_other = 0
    try:
        with open(arguments[0], "rb") as file:
            for moment, actions in recording.replay(file):
                num_moments += 1
                num_other += moment.actions is not None and moment.actions != actions
                for line in recording.tell(moment, actions):
                    print(line)
    except (OSError, ValueError) as error:
        print(f"fairseq_ray_plugin: {arguments[0]}: {error}", file=sys.stderr)
        return 2
    print(f"{num_moments} observations; {num_other} times it was decided otherwise")
    return int(num_other > 0)


def checkpoints(arguments: list[str]) -> int:
    """All checkpoints in a save dir have been read and listed; 1: one of them is damaged."""
    from fairseq_ray_plugin.checkpoints import catalog, stored, stores, table

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m fairseq_ray_plugin checkpoints SAVE_DIR", file=sys.stderr)
        return 2
    (save_dir,) = arguments
    try:
        with tempfile.TemporaryDirectory(prefix="checkpoints_") as folder:
            place: catalog.Place = catalog.Folder(save_dir, must_exist=True)
            if stores.is_url(save_dir):
                place = stored.Stored(save_dir, folder)
            rows = table.rows(place)
    except OSError as error:
        print(f"fairseq_ray_plugin: {save_dir}: {error.strerror}", file=sys.stderr)
        return 2
    except stores.StoreError as error:
        print(f"fairseq_ray_plugin: {error}", file=sys.stderr)
        return 2
    for line in table.lines(rows):
        print(line)
    return int(any(row.damage is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
