"""Choose the learning rates of ``experiments.mi_pruning`` by accuracy on training images that are not used."""

from __future__ import annotations

import time

from experiments.mi_pruning import ROWS, TUNING, measured

RATES = (0.03, 0.1)


def main() -> None:
    """Print the accuracy of each row with each learning rate."""
    for row in ROWS:
        for rate in RATES:
            start = time.process_time()
            result = measured("trained", row, TUNING, rate)
            print(f"{row}, {rate}: {result['accuracy']:.4f} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
