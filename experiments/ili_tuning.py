"""Choose the learning rates of ``experiments.ili`` by held-out noisy labels, three trials for each row.

python -m experiments.ili_tuning
"""

from __future__ import annotations

from experiments.ili import REGIMES, ROWS, trained
from tutelage.evaluation import accuracy

SEEDS = range(100, 102)  # not reported
RATES = (0.02, 0.05, 0.1)


def main() -> None:
    """Print the mean held-out accuracy over seeds of each trial."""
    for row in (row for row in ROWS if row != "opILI, last round"):  # as opILI
        for lr in RATES:
            values = []
            for seed in SEEDS:
                run, student = trained(row, REGIMES["tuned"], seed, lr)
                assert run.data.validation is not None
                values.append(float(accuracy(run.predict(student, run.data.validation), run.data.validation.labels)))
            print(f"{row}: {sum(values) / len(values):.4f} at {lr}", flush=True)


if __name__ == "__main__":
    main()
