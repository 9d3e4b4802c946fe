"""Choose the learning rates of ``experiments.ssal`` by accuracy on training images that are not used."""

from __future__ import annotations

import time

import torch

from experiments.held_out import hold_out
from experiments.ssal import PER_CLASS, ROWS, images, measured, trained
from tutelage.data.conditions import Subset

RATES = (0.05, 0.2)
SEEDS = (100,)  # not reported
HELD_OUT = 2000


def main() -> None:
    """Print the accuracy of the network and of the joint prediction with each rate, as the mean over the seeds."""
    remaining, held_out = hold_out(images(), HELD_OUT)
    for row in ROWS:
        for rate in RATES:
            shares, start = [], time.process_time()
            for seed in SEEDS:
                whole, run = trained(row, seed, rate, Subset(PER_CLASS, seed)(remaining))
                values = measured(whole, run, held_out)
                shares.append([values["network"], values["joint"]])
            means = torch.tensor(shares).mean(0).tolist()
            seconds = time.process_time() - start
            print(f"{row}, {rate}: {[round(mean, 4) for mean in means]} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
