"""The nine methods of the study and the plain student, at a size for a CPU, and at the study's own size.

    python -m experiments.nine_methods digits
    python -m experiments.nine_methods fashion --source idx:FOLDER
    python -m experiments.nine_methods cifar10 --source npz:FILE
    python -m experiments.nine_methods cifar10-full --source npz:FILE --compile reduce-overhead

The last one needs a GPU: all of CIFAR-10, WRN-40-2 teaches WRN-16-2, 200 epochs. Its schedule is that of the authors'
related papers; the study does not publish its own in detail.

The runs are stored below ``runs/nine-methods`` and resume from there. The results of each run are a line in
``docs/results/nine-methods``, from which ``python docs/make_results.py`` writes the page.

To run a part on another machine: ``--methods sp rkd --seeds 2 --noise 0.4``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.raw import write_study
from tutelage.report.console import study_progress
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import LocalWorkers

ROOT = Path(__file__).resolve().parent.parent
RUNS, RAW = Path("runs") / "nine-methods", ROOT / "docs" / "results" / "nine-methods"

NINE = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")
VARIANTS: list[dict[str, Any]] = [
    {"row": "fitnet, joint", "method": "fitnet", "settings": {"mode": "joint"}},
    {"row": "rkd, distances", "method": "rkd", "settings": {"angle": 0.0}},
    {"row": "rkd, angles", "method": "rkd", "settings": {"distance": 0.0}},
    {"row": "one, ensemble", "method": "one", "settings": {"deploy": "ensemble"}},
    {"row": "at + hinton", "method": "at", "settings": {"kd_alpha": 0.9}},
]

SMALL = {
    "students": "experiments.nets:small_resnet8",
    "teachers": "experiments.nets:small_resnet8x4",
    "methods": NINE,
    "per_class": 1000,
    # no augmentation in such short runs
    "train": {"epochs": 8, "augment": False, "validation": 0.0},
}
STUDIES: dict[str, dict[str, Any]] = {
    "digits": {
        "students": "resnet8x0.5",
        "teachers": "resnet14x0.5",
        "methods": [*NINE, *VARIANTS],
        "train": {"epochs": 20, "validation": 0.0},
    },
    "fashion": SMALL,
    "cifar10": SMALL,
    "cifar10-full": {
        "students": "wrn-16-2",
        "teachers": "wrn-40-2",
        "methods": NINE,
        "train": {"epochs": 200, "batch_size": 128, "lr": 0.1, "validation": 0.0},  # x 0.2 at 60, 120 and 160
    },
}


def run(
    name: str, source: str, noise: str, rows: list[str], seeds: int, workers: int | None, compile_: str | None
) -> None:
    """Run the study of one data set and noise rate, for all rows or the given ones, and write its results."""
    fields: dict[str, Any] = {"data": source, "noise": noise, "seeds": seeds, **STUDIES[name]}
    study = Study(name=f"The nine methods, {name}", **fields)
    if compile_:
        study = study.replace(train={**study.train, "compile": compile_})
    if rows:
        study = study.replace(methods={row: study.methods[row].model_dump() for row in rows})
    condition = f"{name}-noise-{noise}"
    with study_progress(Console(stderr=True), quiet=False) as watch:
        results = run_study(study, RUNS / condition, workers=LocalWorkers(workers), watch=watch)
        write_study(results, RAW / f"{condition}.jsonl")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the nine methods with the plain student.")
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--source", help="the data source (see `tutelage data`); digits need none")
    parser.add_argument("--noise", nargs="+", default=["0", "0.4"], help="rates of symmetric label noise")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--methods", nargs="+", default=[], help="rows of the table (default: all)")
    parser.add_argument("--workers", type=int, help="number of processes (default: the number of cores)")
    parser.add_argument("--compile", help="true, auto, reduce-overhead or max-autotune")
    options = parser.parse_args()
    if options.source is None and options.data != "digits":
        parser.error(f"{options.data} needs a data source: --source idx:FOLDER or npz:FILE")
    for rate in options.noise:
        source = options.source or options.data
        run(options.data, source, rate, options.methods, options.seeds, options.workers, options.compile)
