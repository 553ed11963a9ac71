"""Recipes of the tasks that read text."""

from pathlib import Path

from matrix import text_data
from matrix.recipe import Recipe, train_once

ENCODER = (
    *("--encoder-layers", "2", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"),
    *("--encoder-attention-heads", "2"),
)
DECODER = (
    *("--decoder-layers", "2", "--decoder-embed-dim", "32", "--decoder-ffn-embed-dim", "64"),
    *("--decoder-attention-heads", "2"),
)
SEQ2SEQ = (*ENCODER, *DECODER)
ROWS = ("--batch-size", "4")
"""24 mini-batches an epoch, and 8 updates at a batch of 12."""

TOKENS = ("--max-tokens", "60")
PAIR = ("--source-lang", "en", "--target-lang", "fr")
BLOCKS = ("--tokens-per-sample", "16", *ROWS)
SMOOTHED = "label_smoothed_cross_entropy"


def translation(name, arch="transformer", criterion=SMOOTHED, task="translation", **fields):
    options = (*(PAIR if task != "translation_multi_simple_epoch" else ()), *fields.pop("options"))
    fields = {"data": text_data.parallel, "batch": 12} | fields
    return Recipe(name=name, task=task, criterion=criterion, arch=arch, options=options, **fields)


def language_model(name, arch="transformer_lm", criterion="cross_entropy", **fields):
    options = (*BLOCKS, *fields.pop("options"))
    fields = {"task": "language_modeling", "data": text_data.monolingual, "batch": 12} | fields
    return Recipe(name=name, criterion=criterion, arch=arch, options=options, **fields)


def masked(name, task="masked_lm", arch="roberta_base", **fields):
    options = (*BLOCKS, *ENCODER, *fields.pop("options", ()))
    fields = {"data": text_data.monolingual, "batch": 12, "criterion": "masked_lm"} | fields
    return Recipe(name=name, task=task, arch=arch, options=options, **fields)


def many_languages(name, task, arch="multilingual_transformer", **fields):
    options = ("--lang-pairs", "en-fr,fr-en", *ROWS, *SEQ2SEQ, *fields.pop("options", ()))
    fields = {"data": text_data.parallel, "batch": 12, "criterion": SMOOTHED} | fields
    return Recipe(name=name, task=task, arch=arch, options=options, **fields)


def non_autoregressive(arch, **fields):
    noise = fields.pop("noise", "random_mask")
    options = (*PAIR, *ROWS, *SEQ2SEQ, "--noise", noise, *fields.pop("options", ()))
    return Recipe(
        name=arch,
        task="translation_lev",
        criterion="nat_loss",
        arch=arch,
        data=text_data.parallel,
        batch=12,
        options=options,
        **fields,
    )


def sentence(name, task, criterion, arch="roberta_base", **fields):
    options = (
        *(*ENCODER, *ROWS, "--num-classes", "2", "--max-positions", "128"),
        *("--init-token", "0", "--separator-token", "2"),
        *fields.pop("options", ()),
    )
    return Recipe(
        name=name,
        task=task,
        criterion=criterion,
        arch=arch,
        data=text_data.sentences,
        batch=12,
        options=options,
        **fields,
    )


def dummy(name, criterion="cross_entropy", **fields):
    return Recipe(name=name, criterion=criterion, data=None, batch=12, **fields)


XLM = masked(
    "cross_lingual_lm",
    task="cross_lingual_lm",
    criterion="legacy_masked_lm_loss",
    arch="xlm_base",
    data=text_data.by_language,
    options=(
        "--monolingual-langs",
        "en,fr",
        "--shuffle",
        "--masked-lm-only",
        "--num-segment",
        "2",
    ),
)


def pretrained_xlm(folder: Path) -> None:
    """Pairs, and an XLM to begin with."""
    text_data.parallel(folder, text_data.MaskedLMDictionary)
    text_data.by_language(folder / "text")
    train_once(XLM, folder, folder / "text", "xlm")


RECIPES = (
    translation("translation", options=(*TOKENS, *SEQ2SEQ), batch=180, quick=True, loaders=2),
    translation(
        "translation, cross entropy",
        criterion="cross_entropy",
        options=(*ROWS, *SEQ2SEQ, "--share-all-embeddings"),
    ),
    translation(
        "translation with alignments",
        arch="transformer_align",
        criterion="label_smoothed_cross_entropy_with_alignment",
        options=(*ROWS, *SEQ2SEQ, "--load-alignments", "--alignment-layer", "1"),
    ),
    translation(
        "convolutional translation",
        arch="fconv",
        options=(
            *ROWS,
            "--encoder-embed-dim",
            "32",
            "--decoder-embed-dim",
            "32",
            "--decoder-out-embed-dim",
            "32",
            "--encoder-layers",
            "[(32, 3)] * 2",
            "--decoder-layers",
            "[(32, 3)] * 2",
        ),
    ),
    translation(
        "self-attentive convolutions",
        arch="fconv_self_att",
        options=(
            *ROWS,
            "--encoder-embed-dim",
            "32",
            "--decoder-embed-dim",
            "32",
            "--decoder-out-embed-dim",
            "32",
            "--encoder-layers",
            "[(32, 3)] * 2",
            "--decoder-layers",
            "[(32, 3)] * 2",
            "--self-attention",
            "True",
            "--multihead-self-attention-nheads",
            "2",
            "--encoder-attention",
            "False",
            "--gated-attention",
            "True",
            "--downsample",
            "True",
        ),
    ),
    translation(
        "recurrent translation",
        arch="lstm",
        options=(
            *ROWS,
            "--encoder-embed-dim",
            "32",
            "--decoder-embed-dim",
            "32",
            "--encoder-hidden-size",
            "32",
            "--decoder-hidden-size",
            "32",
            "--decoder-out-embed-dim",
            "32",
        ),
    ),
    translation(
        "light convolutions",
        arch="lightconv",
        options=(
            *ROWS,
            *SEQ2SEQ,
            "--encoder-conv-dim",
            "32",
            "--decoder-conv-dim",
            "32",
            "--encoder-kernel-size-list",
            "[3,3]",
            "--decoder-kernel-size-list",
            "[3,3]",
        ),
    ),
    translation(
        "wait-k translation",
        task="simul_text_to_text",
        arch="transformer_monotonic_iwslt_de_en",
        criterion="latency_augmented_label_smoothed_cross_entropy",
        user_dirs=("simultaneous_translation",),
        options=(
            *(*ROWS, *SEQ2SEQ, "--simul-type", "waitk_fixed_pre_decision", "--waitk-lagging", "2"),
            *("--fixed-pre-decision-ratio", "2"),
        ),
    ),
    translation(
        "translation from BART",
        task="translation_from_pretrained_bart",
        arch="mbart_large",
        options=(*ROWS, *SEQ2SEQ, "--langs", "en,fr"),
    ),
    translation(
        "translation from XLM",
        task="translation_from_pretrained_xlm",
        arch="transformer_from_pretrained_xlm",
        data=pretrained_xlm,
        options=(
            *(*ROWS, *SEQ2SEQ, "--activation-fn", "gelu", "--encoder-learned-pos"),
            *(
                "--decoder-learned-pos",
                "--pretrained-xlm-checkpoint",
                "{data}/xlm/checkpoint_last.pt",
            ),
        ),
    ),
    translation(
        "encoder and decoder of RoBERTa", arch="roberta_enc_dec", options=(*ROWS, *SEQ2SEQ)
    ),
    translation(
        "mixture of experts",
        task="translation_moe",
        user_dirs=("translation_moe/translation_moe_src",),
        options=(
            *(*ROWS, *SEQ2SEQ, "--method", "hMoElp", "--mean-pool-gating-network"),
            *("--mean-pool-gating-network-encoder-dim", "32", "--num-experts", "2"),
        ),
    ),
    translation(
        "pointer-generator",
        arch="transformer_pointer_generator",
        user_dirs=("pointer_generator/pointer_generator_src",),
        options=(
            *(*ROWS, *SEQ2SEQ, "--alignment-layer", "1", "--alignment-heads", "1"),
            *("--source-position-markers", "8", "--share-all-embeddings"),
        ),
    ),
    translation(
        "R3F translation",
        criterion="label_smoothed_cross_entropy_r3f",
        user_dirs=("rxf/rxf_src",),
        options=(*ROWS, *SEQ2SEQ),
    ),
    many_languages("multilingual translation", "multilingual_translation", loaders=2),
    many_languages(
        "latent depth",
        "multilingual_translation_latent_depth",
        arch="latent_multilingual_transformer",
        user_dirs=("latent_depth/latent_depth_src",),
        options=(
            *("--share-encoders", "--share-decoders", "--decoder-latent-layer"),
            *("--sparsity-weight", "0.1", "--target-layers", "1", "--soft-update", "4"),
            *("--anneal-updates", "4"),
        ),
    ),
    many_languages(
        "semisupervised translation",
        "semisupervised_translation",
        options=(
            *("--lambda-parallel-config", "1.0", "--lambda-denoising-config", "1.0"),
            *("--lambda-otf-bt-config", "0:0,4:0,5:1", "--bt-max-len-b", "2"),
        ),
    ),
    translation(
        "translation_multi_simple_epoch",
        task="translation_multi_simple_epoch",
        options=(
            *(*ROWS, *SEQ2SEQ, "--langs", "en,fr", "--lang-pairs", "en-fr,fr-en"),
            *("--encoder-langtok", "src", "--decoder-langtok"),
            *("--sampling-method", "temperature", "--sampling-temperature", "1.5"),
        ),
        loaders=2,
        quick=True,
    ),
    translation(
        "translation_multi_simple_epoch, virtual epochs",
        task="translation_multi_simple_epoch",
        options=(
            *(*ROWS, *SEQ2SEQ, "--langs", "en,fr", "--lang-pairs", "en-fr,fr-en"),
            *("--sampling-method", "temperature", "--virtual-epoch-size", "96"),
            *("--virtual-data-size", "300"),
        ),
    ),
    Recipe(
        name="online back-translation",
        task="online_backtranslation",
        criterion=SMOOTHED,
        arch="transformer",
        data=text_data.backtranslation,
        batch=12,
        options=(
            *(*ROWS, *SEQ2SEQ, "--mono-langs", "en,fr", "--valid-lang-pairs", "en-fr"),
            "--share-all-embeddings",
        ),
    ),
    non_autoregressive(
        "nonautoregressive_transformer",
        noise="full_mask",
        options=(
            "--pred-length-offset",
            "--length-loss-factor",
            "0.1",
            "--src-embedding-copy",
        ),
    ),
    non_autoregressive("cmlm_transformer", quick=True),
    non_autoregressive(
        "iterative_nonautoregressive_transformer",
        noise="full_mask",
        options=(
            "--train-step",
            "2",
            "--dae-ratio",
            "0.5",
            "--stochastic-approx",
        ),
    ),
    non_autoregressive(
        "nacrf_transformer",
        noise="full_mask",
        options=(
            "--word-ins-loss-factor",
            "0.5",
            "--crf-beam-approx",
            "8",
        ),
    ),
    non_autoregressive("levenshtein_transformer", noise="random_delete"),
    non_autoregressive("insertion_transformer", noise="random_delete"),
    language_model("language_modeling", options=DECODER, quick=True),
    language_model(
        "adaptive softmax",
        criterion="adaptive_loss",
        options=(
            *DECODER,
            "--adaptive-softmax-cutoff",
            "10,20",
            "--adaptive-input",
            "--adaptive-input-cutoff",
            "10,20",
            "--decoder-input-dim",
            "32",
            "--decoder-output-dim",
            "32",
            "--tie-adaptive-weights",
            "--ddp-backend",
            "legacy_ddp",
        ),
    ),
    language_model(
        "convolutional language model",
        arch="fconv_lm",
        options=(
            "--decoder-embed-dim",
            "32",
            "--decoder-layers",
            "[(32, 3)] * 2",
            "--decoder-attention",
            "False",
        ),
    ),
    language_model(
        "recurrent language model",
        arch="lstm_lm",
        options=(
            "--decoder-embed-dim",
            "32",
            "--decoder-hidden-size",
            "32",
            "--decoder-out-embed-dim",
            "32",
        ),
    ),
    language_model(
        "light convolutions, language model",
        arch="lightconv_lm",
        options=(
            *DECODER,
            "--decoder-kernel-size-list",
            "[3,3]",
        ),
    ),
    language_model(
        "multilingual_language_modeling",
        task="multilingual_language_modeling",
        data=text_data.languages,
        options=(*DECODER, "--multilang-sampling-alpha", "0.7"),
    ),
    language_model(
        "adaptive span",
        task="truncated_bptt_lm",
        criterion="adaptive_span_loss",
        arch="adaptive_span",
        user_dirs=("adaptive_span",),
        options=(
            "--d-model",
            "32",
            "--n-head",
            "2",
            "--d-inner",
            "64",
            "--n-layer",
            "2",
            "--attn-span",
            "16",
        ),
    ),
    masked("masked_lm", options=("--sample-break-mode", "none"), quick=True, loaders=2),
    masked("masked_lm by sentence", options=("--sample-break-mode", "eos", "--mask-whole-words")),
    masked(
        "linformer",
        arch="linformer_roberta_base",
        user_dirs=("linformer/linformer_src",),
        options=("--compressed", "2", "--max-positions", "16"),
    ),
    masked(
        "multilingual_masked_lm",
        task="multilingual_masked_lm",
        data=text_data.languages,
        options=("--multilang-sampling-alpha", "0.7"),
    ),
    masked(
        "legacy_masked_lm",
        task="legacy_masked_lm",
        criterion="legacy_masked_lm_loss",
        arch="masked_lm",
        data=text_data.bert,
        options=(
            "--dropout",
            "0.1",
            "--share-encoder-input-output-embed",
            "--sent-loss",
            "--max-positions",
            "32",
            "--activation-fn",
            "gelu",
            "--dataset-impl",
            "mmap",
        ),
        quick=True,
    ),
    XLM,
    Recipe(
        name="denoising",
        task="denoising",
        criterion="cross_entropy",
        arch="bart_base",
        data=text_data.monolingual,
        batch=12,
        options=(
            *(*BLOCKS, *SEQ2SEQ, "--mask", "0.3", "--mask-length", "span-poisson"),
            *("--poisson-lambda", "3", "--permute-sentences", "0.5", "--insert", "0.1"),
            *("--replace-length", "1", "--rotate", "0.2", "--mask-random", "0.1"),
        ),
        quick=True,
        loaders=2,
    ),
    Recipe(
        name="multilingual_denoising",
        task="multilingual_denoising",
        criterion="cross_entropy",
        arch="mbart_base",
        data=text_data.languages,
        batch=12,
        options=(
            *(*BLOCKS, *SEQ2SEQ, "--mask", "0.3", "--mask-length", "word"),
            *("--add-lang-token", "--langs", "en,fr", "--replace-length", "1"),
        ),
    ),
    sentence("sentence_prediction", "sentence_prediction", "sentence_prediction"),
    sentence(
        "sentence_prediction of a score",
        "sentence_prediction",
        "sentence_prediction",
        options=("--num-classes", "1", "--regression-target"),
    ),
    sentence(
        "sentence_prediction with adapters",
        "sentence_prediction_adapters",
        "sentence_prediction_adapters",
        arch="xmod_base",
    ),
    sentence("sentence_ranking", "sentence_ranking", "sentence_ranking"),
    sentence(
        "R3F sentence prediction",
        "sentence_prediction",
        "sentence_prediction_r3f",
        user_dirs=("rxf/rxf_src",),
    ),
    dummy(
        "dummy_lm",
        task="dummy_lm",
        arch="dummy_model",
        options=(
            "--embed-dim",
            "32",
            "--num-layers",
            "2",
            "--dict-size",
            "100",
            "--dataset-size",
            "96",
            "--tokens-per-sample",
            "16",
            *ROWS,
        ),
    ),
    dummy(
        "dummy_masked_lm",
        task="dummy_masked_lm",
        criterion="masked_lm",
        arch="roberta_base",
        options=(
            *ENCODER,
            "--dict-size",
            "100",
            "--dataset-size",
            "96",
            "--tokens-per-sample",
            "16",
            *ROWS,
        ),
    ),
    dummy(
        "dummy_mt",
        task="dummy_mt",
        arch="transformer",
        options=(
            *SEQ2SEQ,
            "--dict-size",
            "100",
            "--dataset-size",
            "96",
            "--src-len",
            "16",
            "--tgt-len",
            "16",
            *ROWS,
        ),
    ),
)
