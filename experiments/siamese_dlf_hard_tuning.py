"""Choose the settings of ``experiments.siamese_dlf_hard`` on videos that are not reported.

python -m experiments.siamese_dlf_hard_tuning
"""

from __future__ import annotations

import time

from experiments.siamese_dlf_hard import VIDEOS, Row, measured, teacher, trained, videos_of
from tutelage.errors import NonFiniteError

SEEDS = (500, 501)  # not reported; digits of the validation part
CANDIDATES = {
    "alone": (Row(lr=0.1), Row(lr=0.2), Row(lr=0.4)),
    "point-wise": (Row(point=1.0), Row(point=3.0), Row(point=3.0, lr=0.4), Row(response=3.0)),
    "pair-wise": (Row(pair=3.0), Row(pair=10.0), Row(pair=3.0, lr=0.4)),
}
"""The settings that are tried for each row."""


def main() -> None:
    """Print the average overlap without and with the window on the held-out videos, for each setting and seed."""
    start = time.process_time()
    for seed in SEEDS:
        data = videos_of(seed, VIDEOS, "validation")
        print(f"teacher, seed {seed}: {_overlaps(measured(teacher(), data))}", flush=True)
        for row, candidates in CANDIDATES.items():
            for candidate in candidates:
                try:
                    overlaps = _overlaps(measured(trained(candidate, seed, data), data))
                except NonFiniteError:
                    overlaps = "diverged"
                spent = time.process_time() - start
                print(f"{row}, seed {seed}, {candidate}: {overlaps} ({spent:.0f} s)", flush=True)


def _overlaps(values: dict[str, float]) -> str:
    return f"{values['average_overlap_without_window']:.4f}, with window {values['average_overlap']:.4f}"


if __name__ == "__main__":
    main()
