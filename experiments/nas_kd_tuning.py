"""Choose the settings of ``experiments.nas_kd``, three trials for each row, by training questions that it leaves out.

python -m experiments.nas_kd_tuning
"""

from __future__ import annotations

from experiments.nas_kd import SKIPS, Row, data_of, measured, train_cells, trained

SEED = 100  # not reported
RATES = (0.005, 0.01, 0.02)
TRIALS = {
    "searched cell": [
        Row(0.01, {"search_epochs": 8, "choice_rate": rate, "beta": beta})
        for rate, beta in ((0.02, 0.0), (0.02, 0.05), (0.05, 0.05))
    ],
    "random cells": [Row(lr, {"cell": "random"}) for lr in RATES],
    "searched cell, labels only": [Row(lr, {"cell": "random", "gamma": 0.0}) for lr in RATES],
    "text CNN": [Row(lr) for lr in RATES],
    "cell of skips": [Row(lr, {"cell": SKIPS}) for lr in RATES],
}


def main() -> None:
    """Print the accuracy of each trial on training questions that no row of this seed trains on."""
    data, others = data_of(SEED)
    for name, rows in TRIALS.items():
        for row in rows:
            networks = trained(name, row, data, SEED) if name == "text CNN" else [train_cells(row, data, SEED)]
            ((run, model),) = networks
            print(f"{name}: {measured(run, model, others):.4f} {row} {run.notes.get('network', '')}", flush=True)


if __name__ == "__main__":
    main()
