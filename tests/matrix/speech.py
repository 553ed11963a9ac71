"""Recipes of the tasks that read or write speech."""

from matrix import speech_data
from matrix.recipe import Recipe
from matrix.text import DECODER, ENCODER, LEGACY, ROWS, UNUSED

SEQ2SEQ = f"{ENCODER} {DECODER}"
NO_SIMULTANEOUS = (
    "fairseq 0.12.2 comes from PyPI without `fairseq.models.speech_to_text.modules`, "
    "which this needs"
)
SECONDS = "--max-tokens 30000"
"""Samples of waveforms in a mini-batch: 28 mini-batches an epoch."""

CROPS = "--max-sample-size 8000 --min-sample-size 3000"
CONVOLUTIONS = "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2"
WAVE_ENCODER = (
    f"{ENCODER} --final-dim 32 --conv-pos 16 --conv-pos-groups 4 --mask-length 3 "
    f"--conv-feature-layers '{CONVOLUTIONS}'"
)
SPECTROGRAM_DECODER = (
    "--decoder-transformer-layers 2 --decoder-embed-dim 32 --decoder-ffn-embed-dim 64 "
    "--decoder-attention-heads 2 --prenet-dim 32 --postnet-conv-dim 32 --output-frame-dim 20"
)


def waves(name, options, **fields):
    fields = {"data": speech_data.waves, "batch": 90_000} | fields
    return Recipe(name=name, options=f"{SECONDS} {CROPS} {options}", **fields)


def to_text(name, arch, options, **fields):
    fields = {
        **{"task": "speech_to_text", "criterion": "label_smoothed_cross_entropy"},
        **{"data": speech_data.features, "batch": 12},
    } | fields
    return Recipe(name=name, arch=arch, options=f"{ROWS} {options}", **fields)


def from_text(name, arch, options, **fields):
    fields = {
        **{"task": "text_to_speech", "criterion": "tacotron2"},
        **{"data": speech_data.features, "batch": 12},
    } | fields
    return Recipe(
        name=name, arch=arch, options=f"--config-yaml tts.yaml {ROWS} {options}", **fields
    )


def to_speech(name, arch, options, **fields):
    fields = {
        **{"task": "speech_to_speech", "criterion": "speech_to_unit"},
        **{"data": speech_data.features, "batch": 12},
    } | fields
    return Recipe(name=name, arch=arch, options=f"{ROWS} --conv-channels 32 {options}", **fields)


RECIPES = (
    waves(
        "wav2vec 2.0 pre-training",
        f'{WAVE_ENCODER} --infonce --log-keys \'["prob_perplexity","code_perplexity","temp"]\' '
        "--loss-weights '[0.1, 10]' --quantize-targets --latent-vars 16 --num-negatives 5 "
        "--encoder-layerdrop 0.05 --feature-grad-mult 0.1",
        task="audio_pretraining",
        criterion="wav2vec",
        arch="wav2vec2",
        ddp=LEGACY,
        loaders=2,
        quick=True,
    ),
    waves(
        "wav2vec pre-training",
        "--conv-feature-layers '[(32, 10, 5), (32, 8, 4), (32, 4, 2), (32, 4, 2)]' "
        "--conv-aggregator-layers '[(32, 2, 1), (32, 3, 1)]' --prediction-steps 3 "
        "--num-negatives 3",
        task="audio_pretraining",
        criterion="wav2vec",
        arch="wav2vec",
    ),
    waves(
        "HuBERT pre-training",
        f'{WAVE_ENCODER} --label-dir {{data}} --labels \'["km", "other"]\' --label-rate 50 '
        "--random-crop --pred-masked-weight 1.0 --untie-final-proj",
        task="hubert_pretraining",
        criterion="hubert",
        arch="hubert",
        loaders=2,
    ),
    to_text(
        "speech_to_text with SpecAugment",
        "s2t_transformer_xs",
        f"{SEQ2SEQ} --conv-channels 32",
        loaders=2,
        quick=True,
    ),
    to_text(
        "speech_to_text with CTC",
        "s2t_transformer_xs",
        f"{SEQ2SEQ} --conv-channels 32",
        criterion="label_smoothed_cross_entropy_with_ctc",
    ),
    to_text(
        "conformer",
        "s2t_conformer",
        f"{SEQ2SEQ} --conv-channels 32 --attn-type espnet --pos-enc-type rel_pos",
    ),
    to_text(
        "recurrent speech translation",
        "s2t_berard",
        "--lstm-size 16 --input-layers '[32, 16]' --conv-layers '[(4, 3, 2), (4, 3, 2)]' "
        "--num-blstm-layers 1 --decoder-embed-dim 16 --decoder-hidden-dim 32 "
        "--decoder-num-layers 1 --attention-dim 16 --output-layer-dim 16",
    ),
    to_text(
        "convtransformer",
        "convtransformer",
        f"{SEQ2SEQ} --conv-out-channels 8 --input-feat-per-channel 20 --decoder-output-dim 32",
    ),
    to_text(
        "simultaneous speech translation",
        "convtransformer_simul_trans_espnet",
        f"{SEQ2SEQ} --conv-out-channels 8 --input-feat-per-channel 20 --decoder-output-dim 32 "
        "--simul-type waitk_fixed_pre_decision --waitk-lagging 2 --fixed-pre-decision-ratio 2",
        task="simul_speech_to_text",
        criterion="latency_augmented_label_smoothed_cross_entropy",
        user_dirs=("simultaneous_translation",),
        why=NO_SIMULTANEOUS,
    ),
    from_text(
        "text_to_speech",
        "tts_transformer",
        "--encoder-transformer-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
        f"--encoder-attention-heads 2 --encoder-conv-layers 1 {SPECTROGRAM_DECODER}",
    ),
    from_text(
        "FastSpeech 2",
        "fastspeech2",
        "--encoder-layers 2 --encoder-embed-dim 32 --encoder-attention-heads 2 --decoder-layers 2 "
        "--decoder-embed-dim 32 --decoder-attention-heads 2 --fft-hidden-dim 32 "
        "--var-pred-hidden-dim 16 --output-frame-dim 20",
        criterion="fastspeech2",
    ),
    from_text(
        "Tacotron 2",
        "tacotron_2",
        "--encoder-embed-dim 32 --encoder-conv-layers 1 --attention-dim 16 --prenet-dim 16 "
        "--postnet-conv-dim 32 --decoder-lstm-dim 32 --output-frame-dim 20",
    ),
    from_text(
        "frm_text_to_speech",
        "tts_transformer",
        "--encoder-transformer-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
        f"--encoder-attention-heads 2 --encoder-conv-layers 1 {SPECTROGRAM_DECODER} "
        "--do_chunk --add_eos --chunk_init 3 --chunk_incr 1 --chunk_bound 8",
        task="frm_text_to_speech",
        why="broken in fairseq 0.12.2: its data set passes `data_cfg` to one that takes `cfg`",
    ),
    to_speech(
        "speech to units",
        "s2ut_transformer",
        f"{SEQ2SEQ} --target-is-code --target-code-size 20 --label-smoothing 0.1",
    ),
    to_speech(
        "speech to units, conformer",
        "s2ut_conformer",
        f"{SEQ2SEQ} --target-is-code --target-code-size 20 --label-smoothing 0.1",
    ),
    to_speech(
        "speech to spectrograms",
        "s2spect_transformer",
        f"{ENCODER} {SPECTROGRAM_DECODER}",
        criterion="speech_to_spectrogram",
        data=speech_data.spectrograms,
    ),
    Recipe(
        name="speech_unit_modeling",
        task="speech_unit_modeling",
        criterion="speech_unit_lm_criterion",
        arch="transformer_ulm_tiny",
        data=speech_data.units,
        inside="config.json",
        ddp=UNUSED,
        batch=12,
        options=f"{ROWS} --discrete-duration --stream-shifts 1,1 --loss-weights '1;0.5;0.5' "
        "--ignore-unused-valid-subsets",
    ),
)
