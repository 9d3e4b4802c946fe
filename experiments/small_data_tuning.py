"""Choose the learning rates of ``experiments.small_data`` with 20 samples per class, by training samples left out.

python -m experiments.small_data_tuning
"""

from __future__ import annotations

from dataclasses import replace

import torch

from experiments.small_data import ROWS, trained
from tutelage.data import open_data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy

SEEDS = range(100, 102)  # not reported
RATES = (0.001, 0.003, 0.01)


def main() -> None:
    """Print the mean accuracy over seeds of each rate, on samples of the training split that no row trains on."""
    digits = open_data("digits")
    for name, row in ROWS.items():
        for rate in RATES:
            values = []
            for seed in SEEDS:
                data = Subset(20, seed)(digits)
                run, student = trained(replace(row, lr=rate), data, seed)
                others = torch.ones(len(digits.train), dtype=torch.bool)
                others[data.train.index] = False
                split = digits.train.subset(others.nonzero().squeeze(1))
                values.append(float(accuracy(run.predict(student, split), split.labels)))
            print(f"{name}: {sum(values) / len(values):.4f} with {rate}", flush=True)


if __name__ == "__main__":
    main()
