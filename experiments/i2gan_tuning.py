"""Choose the learning rates of ``experiments.i2gan`` by accuracy on the unlabelled training images."""

from __future__ import annotations

import time

from experiments.i2gan import ROWS, accuracy_on, trained

RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (100, 101)  # not reported


def main() -> None:
    """Print the accuracy of each row with each rate, as the mean over the seeds."""
    for row in (row for row in ROWS if "rate" not in row):
        for rate in RATES:
            start, total = time.process_time(), 0.0
            for seed in SEEDS:
                model, _, unlabelled = trained(row, seed, rate)
                total += accuracy_on(model, unlabelled)
            print(f"{row}, {rate:g}: {total / len(SEEDS):.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
