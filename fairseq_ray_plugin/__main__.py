"""``python -m fairseq_ray_plugin TOOL ...`` runs a stock fairseq tool on current Python and torch.

It is ``fairseq-TOOL ...`` with ``compat`` applied, in this process and without Ray.
"""

import importlib
import sys

from fairseq_ray_plugin import compat

# Here, not in main(): processes that the tools start with multiprocessing's spawn import this
# module anew (as __mp_main__) before they import fairseq.
compat.apply()

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
    """The fairseq tool named by the first argument has run with the other arguments."""
    tool = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if tool in ("-h", "--help"):
        print("usage: python -m fairseq_ray_plugin TOOL ...\n\nstock fairseq tools:")
        for name, purpose in TOOLS.items():
            print(f"  {name:12} {purpose}")
        print("\npython -m fairseq_ray_plugin TOOL --help lists a tool's own options")
        return 0
    module = tool.replace("-", "_")
    if module not in TOOLS:
        tools = ", ".join(TOOLS)
        print(f"fairseq_ray_plugin: no tool {tool!r}; the tools are {tools}", file=sys.stderr)
        return 2
    sys.argv = ["fairseq-" + module.replace("_", "-"), *sys.argv[2:]]
    return importlib.import_module(f"fairseq_cli.{module}").cli_main()


if __name__ == "__main__":
    sys.exit(main())
