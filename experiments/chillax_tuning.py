"""Choose the learning rates of ``experiments.chillax``, three trials for each row, by unused training samples.

python -m experiments.chillax_tuning
"""

from __future__ import annotations

from experiments.chillax import ROWS, TRAINED, trained, unused
from tutelage.errors import NonFiniteError
from tutelage.evaluation import accuracy

SEEDS = range(100, 102)  # not reported
RATES = (0.03, 0.1, 0.3)


def main() -> None:
    """Print the mean accuracy over seeds of each trial, on training samples that were not drawn."""
    print(f"{TRAINED} training samples")
    for row in ROWS:
        for lr in RATES:
            values = []
            for seed in SEEDS:
                try:
                    run, student, _ = trained(row, seed, lr)
                except NonFiniteError:
                    values.append(0.0)
                    continue
                split = unused(seed)
                values.append(float(accuracy(run.predict(student, split), split.labels)))
            print(f"{row}: {sum(values) / len(values):.4f} at {lr}", flush=True)


if __name__ == "__main__":
    main()
