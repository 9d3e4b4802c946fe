"""The nine methods of the study beside the plain student, at a size that a CPU can do.

    python experiments/nine_methods.py digits
    python experiments/nine_methods.py fashion --source idx:FOLDER
    python experiments/nine_methods.py cifar10 --source npz:FILE

Every run is kept below ``runs/nine-methods`` and goes on where it was; what it measured is written as one small file
to ``docs/results/nine-methods``, from which ``python docs/make_results.py`` makes the page.

Part of it, on another machine: ``--methods sp rkd --seeds 2 --noise 0.4``.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import Config
from tutelage.studies.compare import PLAIN, TEACHER, compare

ROOT = Path(__file__).resolve().parent.parent
RUNS, RAW = Path("runs") / "nine-methods", ROOT / "docs" / "results" / "nine-methods"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fitnet, joint": ("fitnet", {"mode": "joint"}),
    "rkd, distances": ("rkd", {"angle": 0.0}),
    "rkd, angles": ("rkd", {"distance": 0.0}),
    "one, ensemble": ("one", {"deploy": "ensemble"}),
    "at + hinton": ("at", {"kd_alpha": 0.9}),
}


@dataclass(frozen=True)
class Setting:
    """What one data set is run with."""

    student: str
    teacher: str
    epochs: int
    per_class: int | None
    augment: bool
    methods: dict[str, tuple[str, dict[str, Any]]]


SMALL = ("experiments.nets:small_resnet8", "experiments.nets:small_resnet14")
SETTINGS = {
    "digits": Setting("resnet8x0.5", "resnet14x0.5", 20, None, True, METHODS | VARIANTS),
    # Without crops and flips, for trainings this short.
    "fashion": Setting(*SMALL, epochs=8, per_class=1000, augment=False, methods=METHODS),
    "cifar10": Setting(*SMALL, epochs=8, per_class=1000, augment=False, methods=METHODS),
}


def run(name: str, source: str, noise: str, rows: list[str], seeds: list[int], workers: int | None) -> None:
    """One data set under one noise: all methods, or these rows; all seeds; a raw file a run."""
    setting = SETTINGS[name]
    methods = {label: setting.methods[label] for label in rows or setting.methods}
    config = Config(
        data=source,
        student=setting.student,
        epochs=setting.epochs,
        per_class=setting.per_class,
        augment=setting.augment,
        noise=noise if float(noise) else None,
        validation=0.0,
    )
    where = f"{name}-noise-{noise}"

    def progress(method: str, seed: int, record: dict[str, Any]) -> None:
        if record["epoch"] == record["epochs"]:
            print(f"{where}: {method}, seed {seed}, fit {record['fit'] + 1} done", flush=True)

    compare(config, methods, seeds, RUNS / where, teacher=setting.teacher, workers=workers, progress=progress)
    for seed in seeds:
        for label in (TEACHER, PLAIN, *methods):
            file = RAW / where / f"{re.sub('[^a-z]+', '-', label)}-seed-{seed}.json"
            keep(RUNS / where / f"seed-{seed}" / label, file, label)


def keep(folder: Path, file: Path, label: str) -> None:
    """What a run measured, as one small file."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    test = result["test"]
    raw = {
        "row": label,
        "command": result["command"],
        "method": result["method"],
        "settings": result["settings"],
        "seed": result["seed"],
        "test": {key: test[key] for key in ("accuracy", "worst_class_accuracy", "nll", "brier", "ece")},
        "train": result["train"],
        "parameters": result["cost"]["parameters"],
        "training_seconds": result["seconds"],
        "versions": {name: versions[name] for name in ("python", "torch", "tutelage")},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The nine methods beside the plain student.")
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--source", help="where the data set is (see `tutelage data`); digits need none")
    parser.add_argument("--noise", nargs="+", default=["0", "0.4"], help="rates of symmetric label noise")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--methods", nargs="+", default=[], help="rows of the table; all of them unless given")
    parser.add_argument("--workers", type=int, help="processes; as many as cores unless given")
    given = parser.parse_args()
    if given.source is None and given.data != "digits":
        parser.error(f"say where {given.data} is: --source idx:FOLDER or npz:FILE")
    for rate in given.noise:
        run(given.data, given.source or given.data, rate, given.methods, list(range(given.seeds)), given.workers)
