"""Choose the learning rates of ``experiments.fastsal_scenes`` by CC on training photographs that are held out."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from experiments.fastsal_scenes import ROWS, TEACHER_RATE, measured, teacher, trained
from experiments.held_out import hold_out
from experiments.photographs import photographs

SEED, HELD_OUT = 100, 80  # the seed is not reported
RATES = (0.003, 0.01, 0.03, 0.1)


def main() -> None:
    """Print the metrics of the teacher and of each row with each rate on photographs that neither has seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=["teacher", *ROWS], default=["teacher", *ROWS])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    options = parser.parse_args()
    data, held_out = hold_out(photographs(), HELD_OUT)
    others, start = replace(data, test=held_out), time.process_time()
    for row in options.rows:
        for rate in (TEACHER_RATE,) if row == "teacher" else options.rates:
            student = row != "teacher"
            model = trained(replace(ROWS[row], rate=rate), SEED, data) if student else teacher(data)
            values = measured(model, others)
            rounded = {name: round(value, 4) for name, value in values.items()}
            print(f"{row}, {rate}: {rounded} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
