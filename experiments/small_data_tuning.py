"""Choose the learning rates of ``experiments.small_data`` by accuracy on training images that are not used."""

from __future__ import annotations

import time
from dataclasses import replace

from experiments.held_out import hold_out
from experiments.small_data import ROWS, clothes, trained
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy

RATES = (0.001, 0.003)
SEEDS = (100, 101)  # not reported
PER_CLASS, HELD_OUT = 40, 3000


def main() -> None:
    """Print the accuracy of each row with each rate, as the mean over the seeds."""
    remaining, held_out = hold_out(clothes(), HELD_OUT)
    for name, row in ROWS.items():
        for rate in RATES:
            shares, start = [], time.process_time()
            for seed in SEEDS:
                run, student = trained(replace(row, lr=rate), Subset(PER_CLASS, seed)(remaining), seed)
                shares.append(float(accuracy(run.predict(student, held_out), held_out.labels)))
            print(f"{name}, {rate}: {sum(shares) / len(shares):.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
