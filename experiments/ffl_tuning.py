"""Choose the learning rates of ``experiments.ffl`` by accuracy on training images that are not used."""

from __future__ import annotations

import time

import torch

from experiments.ffl import PER_CLASS, ROWS, images, trained
from experiments.held_out import hold_out
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy

RATES = (0.03, 0.1, 0.3)
SEEDS = (100, 101)  # not reported
HELD_OUT = 5000


def main() -> None:
    """Print the accuracy of the student, and of the fusion, with each rate, as the mean over the seeds."""
    remaining, held_out = hold_out(images(), HELD_OUT)
    for row in ROWS:
        for rate in RATES:
            shares, start = [], time.process_time()
            for seed in SEEDS:
                data = Subset(PER_CLASS, seed)(remaining)
                whole, run = trained(row, seed, rate, data)
                roles = ("branch0", "logits") if "ensemble" in whole.taps else ("logits",)
                parts = run.predict(whole, held_out, roles).chunk(len(roles), 1)
                shares.append([float(accuracy(part, held_out.labels)) for part in parts])
            means = torch.tensor(shares).mean(0).tolist()
            print(
                f"{row}, {rate}: {[round(mean, 4) for mean in means]} ({time.process_time() - start:.0f} s)", flush=True
            )


if __name__ == "__main__":
    main()
