"""Choose the learning rates of ``experiments.dmnn`` by accuracy on training images that are not used."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from experiments.dmnn import PER_CLASS, ROWS, tiny_images, trained
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.methods.dmnn.terms import executed_share

RATES = (0.03, 0.1)
SEEDS = (100,)  # not reported
HELD_OUT = 4000


def main() -> None:
    """Print the accuracy with and without gates with each rate, and the executed share, as means over the seeds."""
    indices = torch.arange(len(tiny_images().train))
    held_out = tiny_images().train.subset(indices[-HELD_OUT:])
    remaining = replace(tiny_images(), train=tiny_images().train.subset(indices[:-HELD_OUT]))
    for name in ("target 0.7", "without gates"):
        for rate in RATES:
            shares, start = [], time.process_time()
            for seed in SEEDS:
                network, run = trained(replace(ROWS[name], lr=rate), Subset(PER_CLASS, seed)(remaining), seed)
                gates = run.predict(network, held_out, ("gates",))
                executed = executed_share(gates, torch.tensor(network.module.path_flops)).mean()
                shares.append([float(accuracy(run.predict(network, held_out), held_out.labels)), float(executed)])
            means = [round(mean, 4) for mean in torch.tensor(shares).mean(0).tolist()]
            print(f"{name}, {rate}: {means} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
