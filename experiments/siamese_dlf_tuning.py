"""Choose the settings of ``experiments.siamese_dlf`` on videos that are not reported.

python -m experiments.siamese_dlf_tuning
"""

from __future__ import annotations

import math
import time

from experiments.siamese_dlf import VIDEOS, Row, trained, videos_of
from tutelage.errors import NonFiniteError
from tutelage.tasks import Compute, find_task

SEED = 500  # not reported; digits of the validation part
CANDIDATES = {
    "alone": (Row(lr=0.02), Row(lr=0.05), Row(lr=0.1), Row(lr=0.2), Row(lr=0.4)),
    "point-wise": (Row(point=1.0, lr=0.2), Row(point=0.3, lr=0.2), Row(point=0.1, lr=0.2), Row(point=0.1, lr=0.1)),
    "pair-wise": (Row(pair=10.0, lr=0.2), Row(pair=3.0, lr=0.2), Row(pair=0.5, lr=0.2), Row(pair=0.5, lr=0.1)),
}
"""The settings that are tried for each row."""


def main() -> None:
    """Print the average overlap on the held-out videos for each setting."""
    data, task = videos_of(SEED, VIDEOS, "validation"), find_task("tracking")
    for row, candidates in CANDIDATES.items():
        for candidate in candidates:
            start = time.process_time()
            try:
                overlap = task.score(trained(candidate, SEED, data), data.test, data, Compute(workers=0))
            except NonFiniteError:
                overlap = math.nan  # it diverged
            print(f"{row}, {candidate}: {overlap:.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
