"""Tones that spell numbers: waveforms, features and units, with manifests as fairseq wants them."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from matrix import text_data

RATE = 16_000
HOP = 320
"""Samples between two units, and between two outputs of wav2vec 2.0's convolutions."""

NUM_UNITS = 20
NUM_FEATURES = 20


def letters(text: str) -> str:
    return " ".join(text.replace(" ", "|")) + " |"


def waves(folder: Path) -> None:
    """Short files, letters (`ltr`) and two sets of units (`km`, `other`) for each."""
    words = [letters(line) for split in text_data.SIZES for line in text_data.lines(split, "en")]
    symbols = sorted({symbol for line in words for symbol in line.split()})
    write_dictionary(folder / "dict.ltr.txt", symbols)
    for name in ("km", "other"):
        write_dictionary(folder / f"dict.{name}.txt", [str(unit) for unit in range(NUM_UNITS)])
    (folder / "wav").mkdir()
    for split in text_data.SIZES:
        noise = np.random.default_rng(len(split))
        manifest, labels = [str(folder / "wav")], {"ltr": [], "km": [], "other": []}
        for number, text in enumerate(text_data.lines(split, "en")):
            units = noise.integers(NUM_UNITS, size=noise.integers(16, 34))
            tones = np.repeat(200 + 100 * units, HOP)
            wave = 0.3 * np.sin(2 * np.pi * np.cumsum(tones) / RATE)
            wave += 0.01 * noise.standard_normal(len(wave))
            soundfile.write(folder / "wav" / f"{split}{number}.wav", wave, RATE)
            manifest.append(f"{split}{number}.wav\t{len(wave)}")
            labels["ltr"].append(letters(text)[: len(units)])
            labels["km"].append(" ".join(map(str, units)))
            labels["other"].append(" ".join(map(str, (units + 1) % NUM_UNITS)))
        write_lines(folder / f"{split}.tsv", manifest)
        for name, lines in labels.items():
            write_lines(folder / f"{split}.{name}", lines)


def features(folder: Path) -> None:
    """Filter banks for speech_to_text and text_to_speech, units for speech_to_speech."""
    vocabulary = text_data.dictionary()
    vocabulary.save(str(folder / "dict.txt"))
    augment = {
        "transforms": {"*": ["utterance_cmvn"], "_train": ["utterance_cmvn", "specaugment"]},
        "specaugment": {
            **{"time_wrap_W": 0, "freq_mask_N": 1, "freq_mask_F": 5},
            **{"time_mask_N": 2, "time_mask_T": 5, "time_mask_p": 0.5},
        },
        "input_feat_per_channel": NUM_FEATURES,
        "input_channels": 1,
        "vocab_filename": "dict.txt",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(augment))
    speech = {
        "vocab_filename": "dict.txt",
        "features": {
            **{"sample_rate": RATE, "n_mels": NUM_FEATURES, "n_fft": 1024, "win_len_t": 0.05},
            **{"hop_len_t": 0.02, "hop_length": HOP, "f_min": 20, "f_max": 8000},
            **{"pitch_min": 0.0, "pitch_max": 1.0, "energy_min": 0.0, "energy_max": 1.0},
        },
    }
    (folder / "tts.yaml").write_text(yaml.safe_dump(speech))
    (folder / "npy").mkdir()
    for split in text_data.SIZES:
        noise = np.random.default_rng(len(split))
        rows = []
        for number, (text, other) in enumerate(text_data.pairs(split)):
            durations = noise.integers(3, 8, size=len(text.split()))
            rows.append(row_of(folder / "npy" / f"{split}{number}", text, other, durations, noise))
        columns = list(rows[0])
        lines = ["\t".join(columns)] + ["\t".join(map(str, row.values())) for row in rows]
        write_lines(folder / f"{split}.tsv", lines)


def row_of(path: Path, text: str, other: str, durations: np.ndarray, noise) -> dict:
    """A line of the manifest, with the files it names; a word sounds alike wherever it is."""
    frames = []
    for word, count in zip(text.split(), durations, strict=True):
        sound = np.random.default_rng(sum(map(ord, word))).standard_normal(NUM_FEATURES)
        frames += [sound] * int(count)
    bank = np.stack(frames) + 0.1 * noise.standard_normal((len(frames), NUM_FEATURES))
    np.save(f"{path}.npy", bank.astype(np.float32))
    for kind in ("pitch", "energy"):
        np.save(f"{path}.{kind}.npy", noise.random(len(durations)).astype(np.float32))
    units = noise.integers(NUM_UNITS, size=len(durations) * 2)
    return (
        {
            "id": path.name,
            "audio": f"{path}.npy",
            "n_frames": len(bank),
            "src_text": other,
            "tgt_text": text,
            "speaker": "A",
            "duration": " ".join(map(str, durations)),
            "pitch": f"{path}.pitch.npy",
            "energy": f"{path}.energy.npy",
        }
        | {"src_audio": f"{path}.npy", "src_n_frames": len(bank)}
        | {
            "tgt_audio": " ".join(map(str, units)),
            "tgt_n_frames": len(units),
        }
    )


def spectrograms(folder: Path) -> None:
    """As `features`; the target of speech_to_speech is a spectrogram."""
    features(folder)
    for split in text_data.SIZES:
        header, *rows = (folder / f"{split}.tsv").read_text().splitlines()
        names = header.split("\t")
        lines = [header]
        for row in rows:
            values = dict(zip(names, row.split("\t"), strict=True))
            values |= {"tgt_audio": values["src_audio"], "tgt_n_frames": values["src_n_frames"]}
            lines.append("\t".join(values.values()))
        write_lines(folder / f"{split}.tsv", lines)


def units(folder: Path) -> None:
    """Units with durations and pitches, for speech_unit_modeling."""
    for split, size in text_data.SIZES.items():
        noise = np.random.default_rng(len(split))
        lengths = noise.integers(8, 24, size=size)
        total = int(lengths.sum())
        np.save(folder / f"{split}.code.npy", noise.integers(NUM_UNITS, size=total))
        np.save(folder / f"{split}.dur.npy", noise.integers(1, 10, size=total))
        np.save(folder / f"{split}.f0.npy", noise.uniform(80, 300, total).astype(np.float32))
        write_lines(folder / f"{split}.leng.txt", [str(length) for length in lengths])
        write_lines(folder / f"{split}.path.txt", [f"{number}.wav" for number in range(size)])
    statistics = {"f0_mean": 190.0, "f0_std": 60.0, "logf0_mean": 5.2, "logf0_std": 0.4}
    torch.save(statistics, folder / "f0_stats.pt")
    config = {
        "f0_stats": str(folder / "f0_stats.pt"),
        "manifests": {split: str(folder / split) for split in text_data.SIZES},
        **{"n_units": NUM_UNITS, "sampling_rate": RATE, "code_hop_size": HOP},
        **{"f0_vq_type": "naive", "f0_vq_n_units": NUM_UNITS, "multispkr": None},
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_dictionary(path: Path, symbols: list[str]) -> None:
    write_lines(path, [f"{symbol} 1" for symbol in symbols])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
