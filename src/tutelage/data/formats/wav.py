"""Sound data sets: WAV files in one folder per class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.data import Data, Split
from tutelage.data.memory import check_fits
from tutelage.data.modality import Waveforms
from tutelage.errors import TutelageError, one_line
from tutelage.text import value_text

LAYOUT = "write train/CLASS/*.wav and test/CLASS/*.wav"
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def load(folder: Path) -> Data:
    """Load ``train/CLASS/*.wav``, ``test/CLASS/*.wav`` and, if it exists, ``val/CLASS/*.wav``.

    Samples become int16: PCM of 8, 16, 24 and 32 bits and floats in [-1, 1] are scaled to that range; channels are
    averaged. Clips are cut, or padded with zeros, to the length of the longest training clip.

    Raises:
        TutelageError: a file is missing, cannot be read or has a different sample rate; the text names it.
    """
    files: dict[str, dict[str, list[Path]]] = {}
    for split, name in FOLDERS.items():
        path = folder / name
        if path.is_dir():
            files[split] = {entry.name: _files(entry) for entry in sorted(path.iterdir()) if _is_class(entry)}
    for split in ("train", "test"):
        if not any(files.get(split, {}).values()):
            raise TutelageError(f"wav: there is no .wav file in the class folders of {folder / split}; {LAYOUT}")
    classes = tuple(files["train"])
    for split, by_class in files.items():
        for name, paths in by_class.items():
            if name not in classes:
                raise TutelageError(
                    f"{folder / FOLDERS[split] / name} is a class that {folder / 'train'} does not have; add training "
                    "clips of it or remove it"
                )
            if not paths and split == "train":
                raise TutelageError(f"{folder / 'train' / name} has no .wav file; add some or remove it")
    rates: dict[int, Path] = {}
    clips: dict[str, list[NDArray[np.int16]]] = {}
    for split, by_class in files.items():
        clips[split] = []
        for file in (file for paths in by_class.values() for file in paths):
            rate, samples = _read(file)
            rates.setdefault(rate, file)
            clips[split].append(samples)
    if len(rates) > 1:
        (first, one), (second, other), *_ = rates.items()
        raise TutelageError(
            f"{one} has {first} samples a second and {other} has {second}; resample them to one rate, for instance "
            f"ffmpeg -i IN.wav -ar {min(first, second)} OUT.wav"
        )
    length = max(len(samples) for samples in clips["train"])
    count = sum(map(len, clips.values()))
    description = f"the {count} clips of {folder}, padded to the longest training clip ({length} samples)"
    check_fits(2 * count * length, description, "cut or remove the longest ones")
    waves = Waveforms(next(iter(rates)))
    splits = {split: _padded_split(clips[split], by_class, classes, length, waves) for split, by_class in files.items()}
    cut = sum(len(samples) > length for split in clips.values() for samples in split)
    record = {"source": "wav", "rate": waves.rate, "length": length, "cut": cut}
    return Data(
        f"wav:{folder}",
        classes,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        views=waves.unaugmented,
        record=(record,),
    )


def to_int16(samples: NDArray[Any], what: str) -> NDArray[np.int16]:
    """Convert samples (N,) or (N, channels) from SciPy to (N,) int16, with channels averaged.

    SciPy returns 24-bit PCM as int32 whose 8 low bits are 0, and 8-bit PCM as uint8 around 128.

    Raises:
        TutelageError: the dtype is not supported, there is no sample, or floats are outside [-1, 1].
    """
    if samples.size == 0:
        raise TutelageError(f"{what} has no sample; remove it")
    values = samples.astype(np.float64)
    if samples.dtype == np.uint8:
        values = (values - 128) * 2**8
    elif samples.dtype == np.int32:
        values /= 2**16
    elif samples.dtype.kind == "f":
        if not (np.abs(values) <= 1).all():  # NaN among them
            invalid = values[~(np.abs(values) <= 1)][0]
            raise TutelageError(
                f"{what} has the sample {value_text(float(invalid))}; floats must be in [-1, 1]: scale it"
            )
        values *= 2**15
    elif samples.dtype != np.int16:
        raise TutelageError(
            f"{what} has samples of {samples.dtype}; save it as PCM of 8, 16, 24 or 32 bits or as floats"
        )
    mono = values if values.ndim == 1 else values.mean(1)
    return np.clip(np.rint(mono), -(2**15), 2**15 - 1).astype(np.int16)


def _read(file: Path) -> tuple[int, NDArray[np.int16]]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Chunk .non-data. not understood")  # metadata of audio editors
            warnings.filterwarnings("error", message="Reached EOF prematurely")
            rate, samples = wavfile.read(file)
    except OSError:
        raise
    except Exception as error:  # struct.error, ValueError and others, depending on the bytes
        raise TutelageError(f"{file} cannot be read as WAV: {one_line(error)}; save it as PCM, or remove it") from error
    return int(rate), to_int16(samples, str(file))


def _padded_split(
    clips: list[NDArray[np.int16]],
    by_class: dict[str, list[Path]],
    classes: tuple[str, ...],
    length: int,
    waves: Waveforms,
) -> Split:
    samples_by_clip = np.zeros((len(clips), length), np.int16)
    for row, samples in zip(samples_by_clip, clips, strict=True):
        row[: len(samples)] = samples[:length]
    labels = [classes.index(name) for name, paths in by_class.items() for _ in paths]
    return Split.of(torch.from_numpy(samples_by_clip), torch.tensor(labels), modality=waves)


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _files(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if entry.suffix.lower() == ".wav" and not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.is_file())
