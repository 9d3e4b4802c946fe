"""Choose the learning rates of ``experiments.nas_kd_minilm``, three trials for each row, by texts that it leaves out.

python -m experiments.nas_kd_minilm_tuning
"""

from __future__ import annotations

from experiments.nas_kd import Row, measured
from experiments.nas_kd_minilm import CONDITIONS, data_of, train_cells

SEED = 100  # not reported
RATES = (0.005, 0.01, 0.02)
TRIALS = {
    "random cells": [Row(lr, {"cell": "random"}) for lr in RATES],
    "random cells, labels only": [Row(lr, {"cell": "random", "gamma": 0.0}) for lr in RATES],
}


def main() -> None:
    """Print the accuracy of each trial on the texts of the pool that no row of this seed trains on."""
    for condition in CONDITIONS:
        _, others = data_of(condition, SEED)
        for name, rows in TRIALS.items():
            for row in rows:
                run, model = train_cells(condition, row, SEED)
                score = measured(run, model, others)
                print(f"{condition}, {name}: {score:.4f} {row} {run.notes.get('network', '')}", flush=True)


if __name__ == "__main__":
    main()
