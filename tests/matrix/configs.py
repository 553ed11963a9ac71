"""Recipes of the hydra configs that fairseq ships, with small models."""

from pathlib import Path

from matrix import speech_data, text_data
from matrix.recipe import Recipe, train_once
from matrix.speech import CONVOLUTIONS

ROWS = ("dataset.batch_size=4",)
ENCODER = (
    *("+model.encoder_layers=2", "+model.encoder_embed_dim=32", "+model.encoder_ffn_embed_dim=64"),
    *("+model.encoder_attention_heads=2",),
)
WAVE_ENCODER = (
    *("+model.encoder_layers=2", "+model.encoder_ffn_embed_dim=64"),
    *("+model.encoder_attention_heads=2", "+model.conv_pos_groups=4"),
    *("model.encoder_embed_dim=32", f"+model.conv_feature_layers='{CONVOLUTIONS}'"),
)
FRAMES = ("dataset.max_tokens=30000",)
CROPS = ("task.max_sample_size=8000", "task.min_sample_size=3000")
WARM = ("lr_scheduler.warmup_updates=8", "optimization.max_update=100")
WHOLE = (
    *("model.freeze_finetune_updates=4", "model.mask_channel_length=4", "+model.mask_length=3"),
    *("dataset.valid_subset=valid", "dataset.validate_after_updates=0"),
    *("dataset.validate_interval=1", "optimization.max_update=100"),
)
HERE = ("common.tensorboard_logdir=null",)


def config(path, task, criterion, arch, *options, **fields):
    """`path` is below fairseq/examples."""
    options = ("task.data={data}", *options)
    return Recipe(
        name=f"examples/{path}",
        config=path,
        task=task,
        criterion=criterion,
        arch=arch,
        options=options,
        **fields,
    )


def glue(name, *options, **fields):
    """Fine-tunes a pre-trained RoBERTa."""
    return config(
        f"roberta/config/finetuning/{name}.yaml",
        *("sentence_prediction", "sentence_prediction", "roberta"),
        *("checkpoint.restore_file={data}/roberta/checkpoint_last.pt", *ENCODER, *ROWS),
        *("optimization.lr=[0.001]", "task.max_positions=64", *WARM, *options),
        data=pretrained_roberta,
        batch=12,
        **fields,
    )


def pretrained_roberta(folder: Path) -> None:
    """Sentences to classify, and a RoBERTa to begin with."""
    text_data.sentences(folder)
    text_data.monolingual(folder / "text")
    train_once(ROBERTA, folder, folder / "text", "roberta")


def pretrained_wav2vec(folder: Path) -> None:
    """Waves with letters, and a wav2vec 2.0 to begin with."""
    speech_data.waves(folder)
    train_once(WAV2VEC, folder, folder, "model")


def pretrained_hubert(folder: Path) -> None:
    """Waves with letters, and a HuBERT to begin with."""
    speech_data.waves(folder)
    train_once(HUBERT, folder, folder, "model")


ROBERTA = config(
    "roberta/config/pretraining/base.yaml",
    "masked_lm",
    "masked_lm",
    "roberta",
    *(*ENCODER, *ROWS, *WARM, "task.tokens_per_sample=16", "model.max_positions=64"),
    data=text_data.monolingual,
    batch=12,
    quick=True,
    loaders=2,
)

WAV2VEC = config(
    "wav2vec/config/pretraining/wav2vec2_base_librispeech.yaml",
    *("audio_pretraining", "wav2vec", "wav2vec2", *WAVE_ENCODER, *FRAMES, *CROPS, *WARM),
    *("model.final_dim=32", "+model.conv_pos=16", "+model.num_negatives=5"),
    *("+model.latent_vars=16", "+model.mask_length=3"),
    data=speech_data.waves,
    batch=90_000,
)

HUBERT = config(
    "hubert/config/pretrain/hubert_base_librispeech.yaml",
    *("hubert_pretraining", "hubert", "hubert", *FRAMES, *CROPS, *WARM, *HERE),
    *("task.label_dir={data}", 'task.labels=["km"]', "model.label_rate=50"),
    *("+model.encoder_layers=2", "+model.encoder_ffn_embed_dim=64"),
    *("+model.encoder_attention_heads=2", "+model.conv_pos_groups=4", "+model.conv_pos=16"),
    *("+model.encoder_embed_dim=32", f"model.conv_feature_layers='{CONVOLUTIONS}'"),
    *("model.final_dim=32", "+model.mask_length=3", "dataset.validate_interval=1"),
    *("distributed_training.distributed_backend=gloo",),
    data=speech_data.waves,
    batch=90_000,
    loaders=2,
)

RECIPES = (
    ROBERTA,
    glue("rte", quick=True),
    glue("sts_b"),
    WAV2VEC,
    config(
        "wav2vec/config/pretraining/wav2vec2_conformer_base_librispeech.yaml",
        *("audio_pretraining", "wav2vec", "wav2vec2 (conformer)", *WAVE_ENCODER, *FRAMES, *CROPS),
        *("model.final_dim=32", "+model.conv_pos=16", "+model.num_negatives=5", *WARM),
        *("+model.latent_vars=16", "+model.mask_length=3"),
        data=speech_data.waves,
        batch=90_000,
    ),
    config(
        "wav2vec/config/finetuning/base_10m.yaml",
        "audio_finetuning",
        "ctc",
        "wav2vec_ctc",
        *("model.w2v_path={data}/model/checkpoint_last.pt", *FRAMES, "optimization.max_update=100"),
        *WHOLE,
        data=pretrained_wav2vec,
        batch=90_000,
    ),
    Recipe(
        name="wav2vec 2.0 to text",
        config="wav2vec/config/finetuning/base_10m.yaml",
        task="audio_finetuning",
        criterion="label_smoothed_cross_entropy",
        arch="wav2vec_seq2seq",
        data=pretrained_wav2vec,
        batch=90_000,
        options=(
            *("task.data={data}", "+task.autoregressive=true", "model._name=wav2vec_seq2seq"),
            *("~criterion", "+criterion._name=label_smoothed_cross_entropy"),
            *("+criterion.label_smoothing=0.1", "checkpoint.best_checkpoint_metric=loss"),
            *("model.w2v_path={data}/model/checkpoint_last.pt", *FRAMES, *WHOLE),
            *("+model.decoder_layers=2", "+model.decoder_embed_dim=32"),
            *("+model.decoder_ffn_embed_dim=64", "+model.decoder_attention_heads=2"),
        ),
    ),
    HUBERT,
    config(
        "hubert/config/finetune/base_10h.yaml",
        "hubert_pretraining",
        "ctc",
        "hubert_ctc",
        *("task.label_dir={data}", "model.w2v_path={data}/model/checkpoint_last.pt", *HERE),
        *(*FRAMES, "optimization.max_update=100", "model.freeze_finetune_updates=4"),
        *("model.mask_channel_length=4", "model.mask_length=3", "dataset.validate_interval=1"),
        data=pretrained_hubert,
        batch=90_000,
    ),
    config(
        "data2vec/config/text/pretraining/base.yaml",
        "masked_lm",
        "model",
        "data2vec_text",
        *(*HERE, "dataset.max_tokens=64", "task.tokens_per_sample=16", *WARM),
        *("model.average_top_k_layers=2", "model.transformer.max_source_positions=64"),
        *("model.transformer.encoder.embed_dim=32", "model.transformer.encoder.ffn_embed_dim=64"),
        *("model.transformer.encoder.layers=2", "model.transformer.encoder.attention_heads=2"),
        data=text_data.documents,
        batch=192,
        user_dirs=("data2vec",),
    ),
    config(
        "data2vec/config/audio/pretraining/base_librispeech.yaml",
        *("audio_pretraining", "model", "data2vec_audio", *HERE, *FRAMES, *CROPS),
        *(*WAVE_ENCODER, "model.average_top_k_layers=2"),
        *("model.conv_pos=16", "model.mask_length=3", "optimization.max_update=100"),
        *("dataset.disable_validation=true",),
        data=speech_data.waves,
        batch=90_000,
        user_dirs=("data2vec",),
    ),
    Recipe(
        name="fairseq/config with model=transformer_lm",
        config="",
        task="language_modeling",
        criterion="cross_entropy",
        arch="transformer_lm",
        data=text_data.monolingual,
        batch=12,
        options=(
            *("task=language_modeling", "task.data={data}", "task.tokens_per_sample=16", *ROWS),
            *("model=transformer_lm", "model.decoder_layers=2"),
            *("model.decoder_embed_dim=32", "model.decoder_output_dim=32"),
            *("model.decoder_input_dim=32", "model.decoder_ffn_embed_dim=64"),
            *("model.decoder_attention_heads=2", "criterion=cross_entropy"),
            *("optimizer=adam", "lr_scheduler=inverse_sqrt", "lr_scheduler.warmup_updates=8"),
            *("optimization.lr=[0.001]",),
        ),
    ),
)
