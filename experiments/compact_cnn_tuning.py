"""Choose the learning rates of ``experiments.compact_cnn`` by accuracy on training images that are not used."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from experiments.compact_cnn import PER_CLASS, ROWS, TEACHER_RATE, trained
from experiments.dmnn import tiny_images
from experiments.held_out import hold_out
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy

RATES = (0.05, 0.1)
SEEDS = (100,)  # not reported
HELD_OUT = 4000
TUNED = ("dense", "uniform, KD", "uniform, CE", "learned, KD", "learned, CE")


def main() -> None:
    """Print the mean accuracy over the seeds of each row with each rate."""
    remaining, held_out = hold_out(tiny_images(), HELD_OUT)
    parts = {seed: Subset(PER_CLASS, seed)(remaining) for seed in SEEDS}
    shares: dict[tuple[str, float], list[float]] = {}
    start = time.process_time()
    for seed, data in parts.items():
        for name in TUNED:
            for rate in RATES:
                of_teacher = rate if name == "dense" else TEACHER_RATE
                model, run = trained(replace(ROWS[name], lr=rate), data, seed, of_teacher)
                shares.setdefault((name, rate), []).append(
                    float(accuracy(run.predict(model, held_out), held_out.labels))
                )
                print(f"{name}, {rate}, seed {seed}: {shares[name, rate][-1]:.4f}", flush=True)
    for (name, rate), values in shares.items():
        print(f"{name}, {rate}: {torch.tensor(values).mean():.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
