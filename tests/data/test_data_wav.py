"""Audio data read from folders of WAV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from tutelage.data import open_data
from tutelage.data.modality import Waveforms

RATE = 8000
RAMP = np.array([0.0, 0.5, -0.5, 0.25, -1.0])


def write(file: Path, samples: Any, rate: int = RATE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(file, rate, samples)


def pcm16(values: Any) -> Any:
    return np.clip(np.rint(np.asarray(values) * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def write_24(file: Path, samples: Any) -> None:
    """Write 24-bit PCM, which SciPy can read but not write."""
    whole = np.rint(np.asarray(samples) * 2**23).astype(np.int32)
    body = b"".join(int(value).to_bytes(3, "little", signed=True) for value in whole)
    header = b"fmt " + np.array([16], "<u4").tobytes() + np.array([1, 1], "<u2").tobytes()
    header += np.array([RATE, 3 * RATE], "<u4").tobytes() + np.array([3, 24], "<u2").tobytes()
    data = b"data" + np.array([len(body)], "<u4").tobytes() + body + b"\0" * (len(body) % 2)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"RIFF" + np.array([4 + len(header) + len(data)], "<u4").tobytes() + b"WAVE" + header + data)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of two classes with two training clips and one test clip each."""
    for part, count in (("train", 2), ("test", 1)):
        for number, name in enumerate(("high", "low")):
            for clip in range(count):
                write(tmp_path / part / name / f"{clip}.wav", pcm16(RAMP * (number + 1) / 2))
    return tmp_path


def test_clips_become_waves_and_folders_become_classes(sounds: Path) -> None:
    data = open_data(f"wav:{sounds}")
    assert data.classes == ("high", "low")
    assert data.modality == Waveforms(RATE)
    assert data.input_shape == (1, 5)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.inputs[torch.tensor([2])].tolist() == [pcm16(RAMP).tolist()]
    assert data.record == ({"source": "wav", "rate": RATE, "length": 5, "cut": 0},)


@pytest.mark.parametrize(
    ("samples", "tolerance"),
    [
        (np.rint(RAMP * 128 + 128).clip(0, 255).astype(np.uint8), 256),
        (np.rint(RAMP * 2**31).clip(-(2**31), 2**31 - 1).astype(np.int32), 1),
        (RAMP.astype(np.float32), 0),
        (RAMP, 0),
        (np.stack([pcm16(RAMP), np.zeros(5, np.int16)], 1), 0),
    ],
    ids=["8 bits", "32 bits", "float32", "float64", "stereo"],
)
def test_every_sample_format_becomes_int16(samples: Any, tolerance: int, sounds: Path) -> None:
    write(sounds / "train" / "high" / "0.wav", samples)
    row = open_data(f"wav:{sounds}").train.inputs[torch.tensor([0])][0]
    expected = pcm16(RAMP).astype(int) / (2 if samples.ndim == 2 else 1)
    assert np.abs(row.numpy() - expected).max() <= tolerance
    assert row.dtype == torch.int16


def test_24_bit_samples_become_int16(sounds: Path) -> None:
    write_24(sounds / "train" / "high" / "0.wav", [0.0, 0.5, -0.5, 0.25, -1.0])
    row = open_data(f"wav:{sounds}").train.inputs[torch.tensor([0])][0]
    assert row.tolist() == pcm16(RAMP).tolist()


def test_clips_are_cut_or_padded_to_the_longest_training_clip(sounds: Path) -> None:
    write(sounds / "train" / "high" / "0.wav", pcm16([0.5] * 3))
    write(sounds / "test" / "high" / "0.wav", pcm16([0.5] * 9))
    data = open_data(f"wav:{sounds}")
    assert data.train.inputs[torch.tensor([0])][0].tolist() == [16384] * 3 + [0, 0]
    assert data.test.inputs[torch.tensor([0])][0].tolist() == [16384] * 5
    assert data.record[0]["cut"] == 1


def test_differing_sample_rates_are_refused(sounds: Path, refused: Any) -> None:
    write(sounds / "test" / "low" / "0.wav", pcm16(RAMP), rate=16000)
    with refused("8000", "16000", "one rate"):
        open_data(f"wav:{sounds}")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0"])
def test_damaged_files_are_refused(content: bytes, sounds: Path, refused: Any) -> None:
    (sounds / "train" / "high" / "0.wav").write_bytes(content)
    with refused("0.wav", "cannot be read as WAV"):
        open_data(f"wav:{sounds}")


def test_truncated_clip_is_refused(sounds: Path, refused: Any) -> None:
    file = sounds / "train" / "high" / "0.wav"
    write(file, pcm16(np.zeros(100)))
    file.write_bytes(file.read_bytes()[:-60])
    with refused("0.wav", "cannot be read as WAV"):
        open_data(f"wav:{sounds}")


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf")])
def test_float_samples_out_of_range_are_refused(value: float, sounds: Path, refused: Any) -> None:
    write(sounds / "train" / "high" / "0.wav", np.array([0.0, value], np.float32))
    with refused("0.wav", str(value), "[-1, 1]"):
        open_data(f"wav:{sounds}")


def test_clip_without_samples_is_refused(sounds: Path, refused: Any) -> None:
    write(sounds / "train" / "high" / "0.wav", np.zeros(0, np.int16))
    with refused("0.wav", "no sample"):
        open_data(f"wav:{sounds}")


def test_missing_splits_and_unknown_classes_are_refused(sounds: Path, tmp_path: Path, refused: Any) -> None:
    write(sounds / "test" / "middle" / "0.wav", pcm16(RAMP))
    with refused("middle", "does not have"):
        open_data(f"wav:{sounds}")
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    with refused("no .wav file", "train/CLASS/*.wav"):
        open_data(f"wav:{tmp_path / 'empty'}")
    with refused("there is no folder"):
        open_data(f"wav:{tmp_path / 'absent'}")
    with refused("image size", "wav"):
        open_data(f"wav:{sounds}", image_size=8)


def test_network_trains_on_waves(sounds: Path) -> None:
    import tutelage

    net = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    result = tutelage.train(net, open_data(f"wav:{sounds}"), epochs=2, batch_size=4, validation=0, device="cpu")
    assert result.metrics["test"]["samples"] == 2
