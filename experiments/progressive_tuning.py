"""Choose the learning rates of ``experiments.progressive``, two trials for each kind of row, by held-out samples.

python -m experiments.progressive_tuning
"""

from __future__ import annotations

from experiments.progressive import Row, digits, trained
from tutelage.errors import NonFiniteError
from tutelage.evaluation import accuracy

SEEDS = range(100, 102)  # not reported
RATES = (0.1, 0.2)
TRIALS = {
    "all data": [Row(lr, "plain") for lr in RATES],
    "all data, cosine": [Row(lr, "plain", schedule="cosine") for lr in RATES],
    "progressive": [Row(lr) for lr in RATES],
    "constant batch": [Row(lr, settings={"batch": "constant"}) for lr in RATES],
}


def main() -> None:
    """Print the mean accuracy over seeds of each trial, on a fifth of the training split that is held out."""
    for name, rows in TRIALS.items():
        for row in rows:
            values = []
            for seed in SEEDS:
                data = digits().hold_out(0.2, seed)
                assert data.validation is not None
                try:
                    run, student = trained(row, data, seed)
                except NonFiniteError:
                    values.append(0.0)
                    continue
                values.append(float(accuracy(run.predict(student, data.validation), data.validation.labels)))
            print(f"{name}: {sum(values) / len(values):.4f} {row}", flush=True)


if __name__ == "__main__":
    main()
