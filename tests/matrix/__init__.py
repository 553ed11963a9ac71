"""Every training task and criterion of fairseq 0.12.2, tiny: recipes, their data, and the check."""

from matrix import configs, speech, text, translation

RECIPES = (*translation.RECIPES, *text.RECIPES, *speech.RECIPES, *configs.RECIPES)

MISSING = {
    "task": {},
    "criterion": {
        "composite_loss": "wants a list of outputs, which no model of fairseq returns",
        "vocab_parallel_cross_entropy": "wants Megatron",
    },
    "model": {
        "camembert": "RoBERTa by another name",
        "gottbert": "RoBERTa by another name",
        "hf_gpt2": "wants the package transformers",
        "model_parallel_roberta": "wants Megatron",
        "model_parallel_transformer": "wants Megatron",
        "model_parallel_transformer_lm": "wants Megatron",
        "pipeline_parallel_transformer": "wants fairscale, and several GPUs in a process",
        "xlmr": "RoBERTa by another name",
        "xm_transformer": "wants large pre-trained models",
    },
}
"""What fairseq registers and no recipe trains, and why."""
