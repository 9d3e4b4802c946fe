"""Compare learning rates for ``experiments.spikes`` on seeds that it does not report."""

from __future__ import annotations

import time

import torch

from experiments.spikes import ROWS, TEACHER, images, run_of
from tutelage.methods import find
from tutelage.methods.spikes.operations.snn import metrics

RATES = (0.001, 0.005, 0.015)
SEEDS = (100, 101)  # not reported


def main() -> None:
    """Print the accuracy on the test images, by rate and seed; teacher and students have the same rate."""
    test = images().test
    for rate in RATES:
        for seed in SEEDS:
            teacher = find("plain")(run_of(TEACHER, rate, seed)).eval()
            for network in ("snn8", "snn16"):
                for row in [row for row in ROWS if "assistant" not in row]:
                    start, settings = time.process_time(), ROWS[row]
                    run = run_of(network, rate, seed, teacher)
                    student = find("plain")(run) if settings is None else find("spikes")(run, **settings)
                    measured = metrics(student.eval(), test, torch.zeros(1), test.labels)["one_draw_accuracy"]
                    print(
                        f"{network}, {row}, {rate}, seed {seed}: {measured:.4f} ({time.process_time() - start:.0f} s)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
