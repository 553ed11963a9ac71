"""Every training task and criterion of fairseq 0.12.2, tiny: recipes, their data, and the check."""

from matrix import configs, speech, text

RECIPES = (*text.RECIPES, *speech.RECIPES, *configs.RECIPES)

MISSING = {
    "task": {},
    "criterion": {
        "vocab_parallel_cross_entropy": "needs Megatron",
    },
    "model": {},
}
"""What fairseq registers and no recipe trains, and why."""
