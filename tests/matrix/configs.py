"""Recipes of the hydra configs that fairseq ships, with small models."""

from pathlib import Path

from matrix import speech_data, text_data
from matrix.recipe import Recipe
from matrix.speech import CONVOLUTIONS
from matrix.text import pretrained

ROWS = "dataset.batch_size=4"
SECONDS = "dataset.max_tokens=30000"
CROPS = "task.max_sample_size=8000 task.min_sample_size=3000"
ENCODER = "+model.encoder_layers=2 +model.encoder_ffn_embed_dim=64 +model.encoder_attention_heads=2"
CONVOLVED = f"""model.conv_feature_layers="'{CONVOLUTIONS}'" +model.conv_pos_groups=4"""
WARM = "lr_scheduler.warmup_updates=8 optimization.max_update=100"
NO_TENSORBOARD = "common.tensorboard_logdir=null"
TUNED = (
    f"{SECONDS} optimization.max_update=100 model.freeze_finetune_updates=4 "
    "model.mask_channel_length=4 dataset.validate_after_updates=0 dataset.validate_interval=1 "
    "model.w2v_path={data}/before/checkpoint_last.pt task.data={data}/text"
)


def config(path, options, **fields):
    """`path` is below fairseq/examples."""
    if "task.data=" not in options:
        options = f"task.data={{data}} {options}"
    fields = {"name": f"examples/{path}"} | fields
    return Recipe(config=path, options=options, **fields)


def pre_trains_wav2vec(name, arch):
    return config(
        f"wav2vec/config/pretraining/{name}.yaml",
        f"{ENCODER} +{CONVOLVED} {SECONDS} {CROPS} {WARM} model.final_dim=32 "
        "model.encoder_embed_dim=32 +model.conv_pos=16 +model.num_negatives=5 "
        "+model.latent_vars=16 +model.mask_length=3",
        task="audio_pretraining",
        criterion="wav2vec",
        arch=arch,
        data=speech_data.waves,
        batch=90_000,
    )


def tunes_roberta(name, **fields):
    return config(
        f"roberta/config/finetuning/{name}.yaml",
        f"{ENCODER} +model.encoder_embed_dim=32 {ROWS} {WARM} optimization.lr=[0.001] "
        "task.max_positions=64 checkpoint.restore_file={data}/before/checkpoint_last.pt",
        task="sentence_prediction",
        criterion="sentence_prediction",
        arch="roberta",
        data=roberta,
        batch=12,
        **fields,
    )


def roberta(folder: Path) -> None:
    """Sentences to classify, and a RoBERTa."""
    text_data.sentences(folder)
    pretrained(ROBERTA, folder)


def wav2vec(folder: Path) -> None:
    """Waves with letters, and a wav2vec 2.0."""
    pretrained(WAV2VEC, folder)


def hubert(folder: Path) -> None:
    """Waves with letters, and a HuBERT."""
    pretrained(HUBERT, folder)


ROBERTA = config(
    "roberta/config/pretraining/base.yaml",
    f"{ENCODER} +model.encoder_embed_dim=32 {ROWS} {WARM} task.tokens_per_sample=16 "
    "model.max_positions=64",
    task="masked_lm",
    criterion="masked_lm",
    arch="roberta",
    data=text_data.monolingual,
    batch=12,
    loaders=2,
)
WAV2VEC = pre_trains_wav2vec("wav2vec2_base_librispeech", "wav2vec2")
HUBERT = config(
    "hubert/config/pretrain/hubert_base_librispeech.yaml",
    f"{ENCODER} {CONVOLVED} {SECONDS} {CROPS} {WARM} {NO_TENSORBOARD} task.label_dir={{data}} "
    'task.labels=["km"] model.label_rate=50 +model.encoder_embed_dim=32 +model.conv_pos=16 '
    "model.final_dim=32 +model.mask_length=3 dataset.validate_interval=1 "
    "distributed_training.distributed_backend=gloo",
    task="hubert_pretraining",
    criterion="hubert",
    arch="hubert",
    data=speech_data.waves,
    batch=90_000,
    loaders=2,
)

RECIPES = (
    ROBERTA,
    tunes_roberta("rte", quick=True),
    tunes_roberta("sts_b"),
    WAV2VEC,
    pre_trains_wav2vec("wav2vec2_conformer_base_librispeech", "wav2vec2 (conformer)"),
    config(
        "wav2vec/config/finetuning/base_10m.yaml",
        f"{TUNED} +model.mask_length=3 dataset.valid_subset=valid",
        task="audio_finetuning",
        criterion="ctc",
        arch="wav2vec_ctc",
        data=wav2vec,
        batch=90_000,
    ),
    config(
        "wav2vec/config/finetuning/base_10m.yaml",
        f"{TUNED} +model.mask_length=3 dataset.valid_subset=valid +task.autoregressive=true "
        "criterion._name=label_smoothed_cross_entropy ~criterion.zero_infinity "
        "+criterion.label_smoothing=0.1 checkpoint.best_checkpoint_metric=loss "
        "model._name=wav2vec_seq2seq +model.decoder_layers=2 +model.decoder_embed_dim=32 "
        "+model.decoder_ffn_embed_dim=64 +model.decoder_attention_heads=2",
        name="wav2vec 2.0 with a decoder",
        task="audio_finetuning",
        criterion="label_smoothed_cross_entropy",
        arch="wav2vec_seq2seq",
        why="broken in fairseq 0.12.2: its decoder is given a list where it wants a tensor",
        data=wav2vec,
        batch=90_000,
    ),
    HUBERT,
    config(
        "hubert/config/finetune/base_10h.yaml",
        f"{TUNED} model.mask_length=3 task.label_dir={{data}}/text {NO_TENSORBOARD}",
        task="hubert_pretraining",
        criterion="ctc",
        arch="hubert_ctc",
        data=hubert,
        batch=90_000,
    ),
    config(
        "data2vec/config/text/pretraining/base.yaml",
        f"{WARM} {NO_TENSORBOARD} dataset.max_tokens=64 task.tokens_per_sample=16 "
        "model.average_top_k_layers=2 model.transformer.max_source_positions=64 "
        "model.transformer.encoder.embed_dim=32 model.transformer.encoder.ffn_embed_dim=64 "
        "model.transformer.encoder.layers=2 model.transformer.encoder.attention_heads=2",
        task="masked_lm",
        criterion="model",
        arch="data2vec_text",
        why="does not go on from a snapshot: `Cannot load model parameters from checkpoint`",
        data=text_data.documents,
        batch=192,
        user_dirs=("data2vec",),
    ),
    config(
        "data2vec/config/audio/pretraining/base_librispeech.yaml",
        f"{ENCODER} +{CONVOLVED} {SECONDS} {CROPS} {NO_TENSORBOARD} model.encoder_embed_dim=32 "
        "model.average_top_k_layers=2 model.conv_pos=16 model.mask_length=3 "
        "optimization.max_update=100",
        task="audio_pretraining",
        criterion="model",
        arch="data2vec_audio",
        why="broken in data2vec's example: on several workers it asks for a GPU, whatever there is",
        data=speech_data.waves,
        batch=90_000,
        user_dirs=("data2vec",),
    ),
    Recipe(
        name="fairseq/config, model=transformer_lm",
        config="",
        options="task=language_modeling task.data={data} task.tokens_per_sample=16 "
        f"{ROWS} model=transformer_lm model.decoder_layers=2 model.decoder_embed_dim=32 "
        "model.decoder_output_dim=32 model.decoder_input_dim=32 model.decoder_ffn_embed_dim=64 "
        "model.decoder_attention_heads=2 criterion=cross_entropy optimizer=adam "
        "lr_scheduler=inverse_sqrt lr_scheduler.warmup_updates=8 optimization.lr=[0.001]",
        task="language_modeling",
        criterion="cross_entropy",
        arch="transformer_lm",
        data=text_data.monolingual,
        batch=12,
    ),
)
