"""Choose the settings of the rows of ``experiments.mltp``, six trials for each, by training samples that it leaves out.

python -m experiments.mltp_tuning
"""

from __future__ import annotations

from itertools import product

from experiments.mltp import Row, data_of, trained
from tutelage.errors import NonFiniteError
from tutelage.evaluation import accuracy

SEEDS = range(100, 105)  # not reported
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
LARGE = (0.05, 0.1, 0.2)
TRIALS = {
    "plain": [Row(lr, batches=1, epochs=2) for lr in RATES],
    "two batches": [Row(lr) for lr in RATES],
    "SAM": [Row(lr, rho=rho) for lr, rho in product(LARGE, (0.05, 0.2))],
    "mltp, alpha = lr": [Row(lr, None) for lr in RATES],
    "mltp, alpha tuned": [Row(lr, alpha) for lr, alpha in product(LARGE, (0.3, 1.0))],
}


def main() -> None:
    """Print the mean accuracy over seeds of each trial, on samples of the training split that no row trains on."""
    for name, rows in TRIALS.items():
        for row in rows:
            values = []
            for seed in SEEDS:
                try:
                    run, student, _ = trained(row, seed)
                except NonFiniteError:
                    values.append(0.0)
                    continue
                others = data_of(seed)[1]
                values.append(float(accuracy(run.predict(student, others), others.labels)))
            print(f"{name}: {sum(values) / len(values):.4f} {row}", flush=True)


if __name__ == "__main__":
    main()
