"""Recipes of the tasks that model, denoise and classify text."""

from pathlib import Path

from matrix import text_data
from matrix.recipe import Recipe, train_once

ENCODER = (
    "--encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
    "--encoder-attention-heads 2"
)
DECODER = (
    "--decoder-layers 2 --decoder-embed-dim 32 --decoder-ffn-embed-dim 64 "
    "--decoder-attention-heads 2"
)
ROWS = "--batch-size 4"
"""24 mini-batches of sentences an epoch, and 8 updates at a batch of 12."""

LEGACY = "--ddp-backend legacy_ddp"
"""For models called by their parts, or with layers left out at random by each rank."""

UNUSED = "--find-unused-parameters"
BLOCKS = f"{ROWS} --tokens-per-sample 16"


def language_model(name, options, **fields):
    fields = {
        **{"task": "language_modeling", "criterion": "cross_entropy", "arch": "transformer_lm"},
        **{"data": text_data.monolingual, "batch": 12},
    } | fields
    return Recipe(name=name, options=f"{BLOCKS} {options}", **fields)


def masked(name, options="", **fields):
    fields = {
        **{"task": "masked_lm", "criterion": "masked_lm", "arch": "roberta_base"},
        **{"data": text_data.monolingual, "batch": 12},
    } | fields
    return Recipe(name=name, options=f"{BLOCKS} {ENCODER} {options}", **fields)


def denoising(task, arch, data, options, **fields):
    options = f"{BLOCKS} {ENCODER} {DECODER} --mask 0.3 --replace-length 1 {options}"
    fields = {"criterion": "cross_entropy", "batch": 12} | fields
    return Recipe(name=task, task=task, arch=arch, data=data, options=options, **fields)


def sentences(name, options="", **fields):
    fields = {
        **{"task": "sentence_prediction", "criterion": "sentence_prediction"},
        **{"arch": "roberta_base", "data": text_data.sentences, "batch": 12},
        # the head that predicts masked words stays without work
        "ddp": UNUSED,
    } | fields
    options = f"{ENCODER} {ROWS} --max-positions 128 --init-token 0 --separator-token 2 {options}"
    return Recipe(name=name, options=options, **fields)


def made_up(name, arch, options, criterion="cross_entropy"):
    options = f"{ROWS} --dict-size 100 --dataset-size 96 {options}"
    return Recipe(
        name=name,
        task=name,
        criterion=criterion,
        arch=arch,
        data=None,
        batch=12,
        options=options,
    )


def pretrained(recipe: Recipe, folder: Path) -> None:
    """What `recipe` trains on, in the folder `text`, and a checkpoint of it in `before`."""
    data = folder / "text"
    data.mkdir()
    recipe.data(data)
    train_once(recipe, data, folder / "before")


MASKED = masked("masked_lm", "--sample-break-mode none", loaders=2)
XLM = masked(
    "cross_lingual_lm",
    # the head for sentences is not used, which the default --ddp-backend has to be told
    "--monolingual-langs en,fr --shuffle --masked-lm-only --num-segment 2 --find-unused-parameters",
    task="cross_lingual_lm",
    criterion="legacy_masked_lm_loss",
    arch="xlm_base",
    data=text_data.by_language,
    ddp=UNUSED,
)

RECIPES = (
    language_model("language_modeling", DECODER),
    language_model(
        "adaptive softmax",
        f"{DECODER} --adaptive-softmax-cutoff 10,20 --adaptive-input --adaptive-input-cutoff 10,20 "
        "--decoder-input-dim 32 --decoder-output-dim 32 --tie-adaptive-weights",
        criterion="adaptive_loss",
        ddp=LEGACY,
    ),
    language_model(
        "convolutional language model",
        "--decoder-embed-dim 32 --decoder-layers '[(32, 3)] * 2' --decoder-attention False",
        arch="fconv_lm",
    ),
    language_model(
        "recurrent language model",
        "--decoder-embed-dim 32 --decoder-hidden-size 32 --decoder-out-embed-dim 32",
        arch="lstm_lm",
    ),
    language_model(
        "language model of light convolutions",
        f"{DECODER} --decoder-kernel-size-list [3,3]",
        arch="lightconv_lm",
    ),
    language_model(
        "multilingual_language_modeling",
        f"{DECODER} --multilang-sampling-alpha 0.7",
        task="multilingual_language_modeling",
        data=text_data.languages,
    ),
    language_model(
        "adaptive span",
        "--d-model 32 --n-head 2 --d-inner 64 --n-layer 2 --attn-span 16",
        task="truncated_bptt_lm",
        criterion="adaptive_span_loss",
        arch="adaptive_span",
        user_dirs=("adaptive_span",),
        why="its task cuts the data by the number of workers itself",
    ),
    MASKED,
    masked(
        "masked_lm, whole words",
        "--sample-break-mode eos --mask-whole-words",
        why="broken in fairseq 0.12.2: its task has no `args`",
    ),
    masked(
        "linformer",
        "--compressed 2 --max-positions 16",
        arch="linformer_roberta_base",
        user_dirs=("linformer/linformer_src",),
    ),
    masked(
        "multilingual_masked_lm",
        "--multilang-sampling-alpha 0.7",
        task="multilingual_masked_lm",
        data=text_data.languages,
    ),
    masked(
        "legacy_masked_lm",
        "--dropout 0.1 --share-encoder-input-output-embed --sent-loss --max-positions 32 "
        "--activation-fn gelu --dataset-impl mmap",
        task="legacy_masked_lm",
        criterion="legacy_masked_lm_loss",
        arch="masked_lm",
        data=text_data.bert,
    ),
    XLM,
    denoising(
        "denoising",
        "bart_base",
        text_data.monolingual,
        "--mask-length span-poisson --poisson-lambda 3 --permute-sentences 0.5 --insert 0.1 "
        "--rotate 0.2 --mask-random 0.1",
        loaders=2,
    ),
    denoising(
        "multilingual_denoising",
        "mbart_base",
        text_data.languages,
        "--mask-length word --add-lang-token --langs en,fr",
    ),
    sentences("sentence_prediction", "--num-classes 2"),
    sentences("sentence_prediction of a score", "--num-classes 1 --regression-target"),
    sentences(
        "sentence_prediction_adapters",
        "--num-classes 2",
        task="sentence_prediction_adapters",
        criterion="sentence_prediction_adapters",
        arch="xmod_base",
    ),
    sentences(
        "sentence_ranking",
        "--num-classes 2",
        task="sentence_ranking",
        criterion="sentence_ranking",
    ),
    sentences(
        "R3F sentence prediction",
        "--num-classes 2",
        criterion="sentence_prediction_r3f",
        user_dirs=("rxf/rxf_src",),
    ),
    made_up("dummy_lm", "dummy_model", "--tokens-per-sample 16 --embed-dim 32 --num-layers 2"),
    made_up(
        "dummy_masked_lm",
        "roberta_base",
        f"--tokens-per-sample 16 {ENCODER}",
        criterion="masked_lm",
    ),
    made_up("dummy_mt", "transformer", f"--src-len 16 --tgt-len 16 {ENCODER} {DECODER}"),
)
