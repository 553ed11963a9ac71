"""Recipes of the tasks that translate text."""

from pathlib import Path

from matrix import text_data
from matrix.recipe import Recipe
from matrix.speech import NO_SIMULTANEOUS
from matrix.text import DECODER, ENCODER, LEGACY, MASKED, ROWS, UNUSED, XLM, pretrained

SEQ2SEQ = f"{ENCODER} {DECODER}"
PAIR = "--source-lang en --target-lang fr"
PAIRS = "--lang-pairs en-fr,fr-en"
NO_LIBNAT = "fairseq 0.12.2 comes from PyPI without libnat (the run says so at its start)"
SMOOTHED = "label_smoothed_cross_entropy"


def translation(name, options, **fields):
    fields = {
        **{"task": "translation", "criterion": SMOOTHED, "arch": "transformer"},
        **{"data": text_data.parallel, "batch": 12},
    } | fields
    return Recipe(name=name, options=options, **fields)


def multilingual(name, options="", **fields):
    options = f"{ROWS} {SEQ2SEQ} {PAIRS} {options}"
    return translation(
        name, options, **{"arch": "multilingual_transformer", "ddp": LEGACY} | fields
    )


def by_epoch(name, options, **fields):
    options = f"{ROWS} {SEQ2SEQ} {PAIRS} --langs en,fr --sampling-method temperature {options}"
    return translation(name, options, task="translation_multi_simple_epoch", **fields)


def non_autoregressive(arch, options, **fields):
    options = f"{PAIR} {ROWS} {SEQ2SEQ} {options}"
    fields = {"task": "translation_lev", "criterion": "nat_loss"} | fields
    return translation(arch, options, arch=arch, **fields)


def pretrained_roberta(folder: Path) -> None:
    """Pairs, and a RoBERTa to begin with."""
    text_data.parallel(folder)
    pretrained(MASKED, folder)


def pretrained_xlm(folder: Path) -> None:
    """Pairs, and an XLM to begin with."""
    text_data.parallel(folder, text_data.MaskedLMDictionary)
    pretrained(XLM, folder)


RECIPES = (
    translation(
        "translation",
        f"{PAIR} {SEQ2SEQ} --max-tokens 60",
        batch=180,
        loaders=2,
    ),
    translation(
        "translation, one vocabulary",
        f"{PAIR} {ROWS} {SEQ2SEQ} --share-all-embeddings",
        criterion="cross_entropy",
    ),
    translation(
        "translation with alignments",
        f"{PAIR} {ROWS} {SEQ2SEQ} --load-alignments --alignment-layer 1",
        arch="transformer_align",
        criterion="label_smoothed_cross_entropy_with_alignment",
    ),
    translation(
        "convolutional translation",
        f"{PAIR} {ROWS} --encoder-embed-dim 32 --decoder-embed-dim 32 --decoder-out-embed-dim 32 "
        "--encoder-layers '[(32, 3)] * 2' --decoder-layers '[(32, 3)] * 2'",
        arch="fconv",
    ),
    translation(
        "convolutions with self-attention",
        f"{PAIR} {ROWS} --encoder-embed-dim 32 --decoder-embed-dim 32 --decoder-out-embed-dim 32 "
        "--encoder-layers '[(32, 3)] * 2' --decoder-layers '[(32, 3)] * 2' --self-attention True "
        "--encoder-attention False",
        arch="fconv_self_att",
        ddp=UNUSED,
    ),
    translation(
        "recurrent translation",
        f"{PAIR} {ROWS} --encoder-embed-dim 32 --decoder-embed-dim 32 --decoder-out-embed-dim 32 "
        "--encoder-hidden-size 32 --decoder-hidden-size 32",
        arch="lstm",
    ),
    translation(
        "translation with light convolutions",
        f"{PAIR} {ROWS} {SEQ2SEQ} --encoder-conv-dim 32 --decoder-conv-dim 32 "
        "--encoder-kernel-size-list [3,3] --decoder-kernel-size-list [3,3]",
        arch="lightconv",
    ),
    translation(
        "translation from RoBERTa",
        f"{PAIR} {ROWS} --pretrained-mlm-checkpoint {{data}}/before/checkpoint_last.pt",
        arch="roberta_enc_dec",
        data=pretrained_roberta,
    ),
    translation(
        "translation from BART",
        f"{PAIR} {ROWS} {SEQ2SEQ} --langs en,fr",
        task="translation_from_pretrained_bart",
        arch="mbart_base",
    ),
    translation(
        "translation from XLM",
        f"{PAIR} {ROWS} {SEQ2SEQ} --activation-fn gelu --encoder-learned-pos "
        "--decoder-learned-pos --max-source-positions 16 --max-target-positions 16 "
        "--pretrained-xlm-checkpoint {data}/before/checkpoint_last.pt",
        task="translation_from_pretrained_xlm",
        arch="transformer_from_pretrained_xlm",
        data=pretrained_xlm,
    ),
    translation(
        "wait-k translation",
        f"{PAIR} {ROWS} {SEQ2SEQ} --simul-type waitk_fixed_pre_decision --waitk-lagging 2 "
        "--fixed-pre-decision-ratio 2",
        task="simul_text_to_text",
        criterion="latency_augmented_label_smoothed_cross_entropy",
        arch="transformer_monotonic_iwslt_de_en",
        user_dirs=("simultaneous_translation",),
        why=NO_SIMULTANEOUS,
    ),
    translation(
        "mixture of experts",
        f"{PAIR} {ROWS} {SEQ2SEQ} --method hMoElp --num-experts 2 --mean-pool-gating-network "
        "--mean-pool-gating-network-encoder-dim 32",
        task="translation_moe",
        ddp=LEGACY,
        user_dirs=("translation_moe/translation_moe_src",),
    ),
    translation(
        "pointer-generator",
        f"{PAIR} {ROWS} {SEQ2SEQ} --alignment-layer 1 --alignment-heads 1 "
        "--source-position-markers 8 --share-all-embeddings",
        arch="transformer_pointer_generator",
        user_dirs=("pointer_generator/pointer_generator_src",),
    ),
    translation(
        "R3F translation",
        f"{PAIR} {ROWS} {SEQ2SEQ}",
        criterion="label_smoothed_cross_entropy_r3f",
        user_dirs=("rxf/rxf_src",),
        why="broken in fairseq 0.12.2: its models do not take `token_embeddings`",
    ),
    multilingual("multilingual_translation", task="multilingual_translation", loaders=2),
    multilingual(
        "latent depth",
        "--share-encoders --share-decoders --decoder-latent-layer --target-layers 1 "
        "--sparsity-weight 0.1 --soft-update 4 --anneal-updates 4",
        task="multilingual_translation_latent_depth",
        arch="latent_multilingual_transformer",
        user_dirs=("latent_depth/latent_depth_src",),
        why="a parameter of it is never set, and begins as what was in memory, other on each rank",
    ),
    multilingual(
        "semisupervised translation",
        "--lambda-parallel-config 1.0 --lambda-denoising-config 1.0 "
        "--lambda-otf-bt-config 0:0,4:0,5:1 --bt-max-len-b 2",
        task="semisupervised_translation",
        why="broken in fairseq 0.12.2: its `train_step` raises KeyError",
    ),
    translation(
        "online back-translation",
        f"{ROWS} {SEQ2SEQ} --mono-langs en,fr --valid-lang-pairs en-fr --share-all-embeddings",
        task="online_backtranslation",
        data=text_data.backtranslation,
    ),
    by_epoch(
        "translation_multi_simple_epoch",
        "--encoder-langtok src --decoder-langtok --sampling-temperature 1.5",
        loaders=2,
    ),
    by_epoch(
        "translation_multi_simple_epoch, virtual epochs",
        "--virtual-epoch-size 96 --virtual-data-size 300",
    ),
    non_autoregressive(
        "nonautoregressive_transformer",
        "--noise full_mask --pred-length-offset --length-loss-factor 0.1 --src-embedding-copy",
        ddp=UNUSED,
    ),
    non_autoregressive("cmlm_transformer", "--noise random_mask"),
    non_autoregressive(
        "iterative_nonautoregressive_transformer",
        "--noise full_mask --train-step 2 --dae-ratio 0.5 --stochastic-approx",
    ),
    non_autoregressive(
        "nacrf_transformer",
        "--noise full_mask --word-ins-loss-factor 0.5 --crf-beam-approx 8",
    ),
    non_autoregressive("levenshtein_transformer", "--noise random_delete", why=NO_LIBNAT),
    non_autoregressive("insertion_transformer", "--noise random_delete", why=NO_LIBNAT),
)
