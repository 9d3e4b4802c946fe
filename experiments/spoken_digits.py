"""Spoken digits (FSDD) for experiments on sounds, as a folder for ``wav:``."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from experiments.paired import ROOT
from tutelage.data import Data, open_data

FILE = ROOT / "runs" / "data" / "fsdd.npz"


@lru_cache(maxsize=1)
def spoken_digits(seconds: float, per_speaker: int) -> Data:
    """A part of FSDD: recordings of 6 speakers, at 8 kHz, not longer than ``seconds``.

    Args:
        seconds: longer recordings are left out.
        per_speaker: training recordings of each digit by each speaker, at most, in the order of their numbers.
    """
    archive = dict(np.load(FILE))
    lengths = np.diff(archive["offsets"])
    with tempfile.TemporaryDirectory() as folder:
        counts: dict[tuple[int, int], int] = {}
        for i in np.argsort(archive["index"], kind="stable"):
            digit, speaker, is_test = (
                int(archive["labels"][i]),
                int(archive["speakers"][i]),
                int(archive["split"][i]) > 0,
            )
            if lengths[i] > seconds * int(archive["rate"]):
                continue
            if not is_test:
                counts[digit, speaker] = counts.get((digit, speaker), 0) + 1
                if counts[digit, speaker] > per_speaker:
                    continue
            path = Path(folder) / ("test" if is_test else "train") / str(digit) / f"{i:04}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, archive["samples"][archive["offsets"][i] : archive["offsets"][i + 1]], int(archive["rate"]))
        return open_data(f"wav:{folder}")


def _write(path: Path, samples: np.ndarray, rate: int) -> None:
    from scipy.io import wavfile

    wavfile.write(path, rate, samples)
