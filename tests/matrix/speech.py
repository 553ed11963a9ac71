"""Recipes of the tasks that read speech."""

from matrix import speech_data
from matrix.recipe import Recipe
from matrix.text import DECODER, ENCODER, ROWS, SEQ2SEQ, SMOOTHED

FRAMES = ("--max-tokens", "30000")
"""Samples in a mini-batch of waveforms."""

CONVOLUTIONS = "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2"
WAV2VEC = (
    *("--encoder-layers", "2", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"),
    *("--encoder-attention-heads", "2", "--final-dim", "32", "--conv-pos", "16"),
    *("--conv-pos-groups", "4", "--conv-feature-layers", CONVOLUTIONS, "--mask-length", "3"),
)


def waves(name, task, criterion, arch, *options, **fields):
    fields = {"data": speech_data.waves, "batch": 90_000} | fields
    options = (*FRAMES, *options)
    return Recipe(name=name, task=task, criterion=criterion, arch=arch, options=options, **fields)


def to_text(name, arch, *options, criterion=SMOOTHED, **fields):
    fields = {"task": "speech_to_text", "data": speech_data.features, "batch": 12} | fields
    options = ("--config-yaml", "config.yaml", *ROWS, *options)
    return Recipe(name=name, criterion=criterion, arch=arch, options=options, **fields)


def from_text(name, arch, criterion, *options, task="text_to_speech"):
    options = ("--config-yaml", "tts.yaml", *ROWS, "--output-frame-dim", "20", *options)
    return Recipe(
        name=name,
        task=task,
        criterion=criterion,
        arch=arch,
        options=options,
        data=speech_data.features,
        batch=12,
    )


def to_speech(name, arch, criterion, *options, data=speech_data.features):
    options = ("--config-yaml", "config.yaml", *ROWS, *options)
    return Recipe(
        name=name,
        task="speech_to_speech",
        criterion=criterion,
        arch=arch,
        options=options,
        data=data,
        batch=12,
    )


TTS = (
    *("--encoder-transformer-layers", "2", "--encoder-embed-dim", "32"),
    *("--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2"),
    *("--decoder-transformer-layers", "2", "--decoder-embed-dim", "32"),
    *("--decoder-ffn-embed-dim", "64", "--decoder-attention-heads", "2"),
    *("--prenet-dim", "32", "--postnet-conv-dim", "32", "--encoder-conv-layers", "1"),
)

RECIPES = (
    waves(
        "wav2vec 2.0 pre-training",
        "audio_pretraining",
        "wav2vec",
        "wav2vec2",
        *WAV2VEC,
        "--infonce",
        "--log-keys",
        '["prob_perplexity","code_perplexity","temp"]',
        *("--loss-weights", "[0.1, 10]", "--quantize-targets", "--latent-vars", "16"),
        *("--num-negatives", "5", "--encoder-layerdrop", "0.05", "--feature-grad-mult", "0.1"),
        *("--max-sample-size", "8000", "--min-sample-size", "3000"),
        quick=True,
        loaders=2,
    ),
    waves(
        "wav2vec pre-training",
        "audio_pretraining",
        "wav2vec",
        "wav2vec",
        *("--conv-feature-layers", "[(32, 10, 5), (32, 8, 4), (32, 4, 2), (32, 4, 2)]"),
        *("--conv-aggregator-layers", "[(32, 2, 1), (32, 3, 1)]", "--prediction-steps", "3"),
        *("--num-negatives", "3", "--max-sample-size", "8000", "--min-sample-size", "3000"),
    ),
    waves(
        "HuBERT pre-training",
        "hubert_pretraining",
        "hubert",
        "hubert",
        *WAV2VEC,
        "--label-dir",
        "{data}",
        "--labels",
        '["km", "other"]',
        "--label-rate",
        "50",
        *("--max-sample-size", "8000", "--min-sample-size", "3000", "--random-crop"),
        *("--pred-masked-weight", "1.0", "--untie-final-proj"),
        quick=True,
        loaders=2,
    ),
    to_text(
        "speech_to_text with SpecAugment",
        "s2t_transformer_xs",
        *SEQ2SEQ,
        *("--conv-channels", "32"),
        quick=True,
        loaders=2,
    ),
    to_text(
        "speech_to_text with CTC",
        "s2t_transformer_xs",
        *SEQ2SEQ,
        "--conv-channels",
        "32",
        criterion="label_smoothed_cross_entropy_with_ctc",
    ),
    to_text(
        "conformer",
        "s2t_conformer",
        *SEQ2SEQ,
        "--conv-channels",
        "32",
        *("--attn-type", "espnet", "--pos-enc-type", "rel_pos"),
    ),
    to_text(
        "recurrent speech translation",
        "s2t_berard",
        "--lstm-size",
        "16",
        *("--input-layers", "[32, 16]", "--conv-layers", "[(4, 3, 2), (4, 3, 2)]"),
        *("--num-blstm-layers", "1", "--decoder-embed-dim", "16", "--decoder-hidden-dim", "32"),
        *("--decoder-num-layers", "1", "--attention-dim", "16", "--output-layer-dim", "16"),
    ),
    to_text(
        "convtransformer",
        "convtransformer",
        *SEQ2SEQ,
        "--conv-out-channels",
        "8",
        *("--input-feat-per-channel", "20", "--decoder-output-dim", "32"),
    ),
    to_text(
        "simultaneous speech translation",
        "convtransformer_simul_trans_espnet",
        *SEQ2SEQ,
        *("--simul-type", "waitk_fixed_pre_decision", "--waitk-lagging", "2"),
        *("--fixed-pre-decision-ratio", "2", "--input-feat-per-channel", "20"),
        *("--conv-out-channels", "8", "--decoder-output-dim", "32"),
        task="simul_speech_to_text",
        user_dirs=("simultaneous_translation",),
        criterion="latency_augmented_label_smoothed_cross_entropy",
    ),
    from_text("text_to_speech", "tts_transformer", "tacotron2", *TTS),
    from_text(
        "FastSpeech 2",
        "fastspeech2",
        "fastspeech2",
        *ENCODER[:4],
        *DECODER[:4],
        *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
        *("--fft-hidden-dim", "32", "--var-pred-hidden-dim", "16"),
    ),
    from_text(
        "Tacotron 2",
        "tacotron_2",
        "tacotron2",
        "--encoder-embed-dim",
        "32",
        *("--attention-dim", "16", "--prenet-dim", "16", "--postnet-conv-dim", "32"),
        *("--decoder-lstm-dim", "32", "--encoder-conv-layers", "1"),
    ),
    from_text(
        "frm_text_to_speech",
        "tts_transformer",
        "tacotron2",
        *TTS,
        "--do_chunk",
        "--add_eos",
        *("--chunk_init", "3", "--chunk_incr", "1", "--chunk_bound", "8"),
        task="frm_text_to_speech",
    ),
    to_speech(
        "speech to units",
        "s2ut_transformer",
        "speech_to_unit",
        *SEQ2SEQ,
        "--target-is-code",
        *("--target-code-size", "20", "--conv-channels", "32", "--label-smoothing", "0.1"),
    ),
    to_speech(
        "speech to units, conformer",
        "s2ut_conformer",
        "speech_to_unit",
        *SEQ2SEQ,
        *("--target-is-code", "--target-code-size", "20", "--conv-channels", "32"),
        *("--label-smoothing", "0.1"),
    ),
    to_speech(
        "speech to spectrograms",
        "s2spect_transformer",
        "speech_to_spectrogram",
        *ENCODER,
        "--conv-channels",
        "32",
        "--output-frame-dim",
        "20",
        "--prenet-dim",
        "16",
        *("--postnet-conv-dim", "16", "--decoder-transformer-layers", "2"),
        *("--decoder-embed-dim", "32", "--decoder-ffn-embed-dim", "64"),
        *("--decoder-attention-heads", "2"),
        data=speech_data.spectrograms,
    ),
    Recipe(
        name="speech_unit_modeling",
        task="speech_unit_modeling",
        criterion="speech_unit_lm_criterion",
        arch="transformer_ulm_tiny",
        data=speech_data.units,
        inside="config.json",
        batch=12,
        options=(
            *(*ROWS, "--discrete-duration", "--stream-shifts", "1,1"),
            *("--loss-weights", "1;0.5;0.5", "--ignore-unused-valid-subsets"),
        ),
    ),
)
