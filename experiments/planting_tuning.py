"""Choose the learning rates of ``experiments.planting`` by accuracy on training images that are not used."""

from __future__ import annotations

import time
from dataclasses import replace

from experiments.ffl import images
from experiments.held_out import hold_out
from experiments.planting import FOR_TUNING, ROWS, trained
from tutelage.evaluation import accuracy

RATES = (0.003, 0.01, 0.03)
SEEDS = (100,)  # not reported


def main() -> None:
    """Print the accuracy of each row with each rate."""
    _, unused = hold_out(images(), FOR_TUNING)
    for name, row in ROWS.items():
        if row.fine_tune or name == "start":  # these have the rate of the row "planting"
            continue
        for rate in RATES:
            shares, start = [], time.process_time()
            for seed in SEEDS:
                student, run = trained(replace(row, lr=rate), seed)
                shares.append(float(accuracy(run.predict(student, unused), unused.labels)))
            print(f"{name}, {rate}: {sum(shares) / len(shares):.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
