"""Results of studies for pages, and a parser of pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.studies.metrics import metrics_of
from tutelage.studies.reading import CONDITION, PAIR
from tutelage.studies.results import Results
from tutelage.tasks import find_task

METRICS = metrics_of(find_task("classification"))
HOSTILE = '<script>alert("x")</script>&"\'$a_b$'


def record(method: str, seed: int, condition: tuple[Any, ...], rng: np.random.Generator) -> dict[str, Any]:
    accuracy = float(rng.uniform(0.6, 0.9))
    measurements = {name: float(rng.uniform(0, 1)) for name in METRICS} | {"accuracy": accuracy, "seconds": 3.0 + seed}
    return {
        **dict(zip((*CONDITION, *PAIR), condition, strict=True)),
        **measurements,
        "key": f"{abs(hash((method, seed, condition))):016x}"[:16],
        "folder": f"runs/{method}-{condition[1]}-seed{seed}",
        "status": "done",
        "error": None,
        "method": method,
        "function": method,
        "settings": {"weight": 1.0},
        "seed": seed,
        "per_class_accuracy": {HOSTILE: accuracy, "b": accuracy / 2},
        "reliability": {"count": [0, 5, 9], "accuracy": [None, 0.5, 0.8], "confidence": [None, 0.5, 0.9]},
        "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.1, 1 - accuracy]},
        "corruptions": {"noise": [0.8, 0.7, 0.6, 0.5, 0.4]},
        "pgd": {"0.01": accuracy / 2},
        "command": f"tutelage distill --method '{method}' --seed {seed}",
        "curve": {"epoch": [1, 2], "train_accuracy": [None, 0.5], "validation_accuracy": [0.4, 0.5], "loss": {}},
    }


def study(
    folder: Path,
    methods: tuple[str, ...] = ("hinton", "at"),
    noise: tuple[str | None, ...] = (None, "0.2", "0.4"),
    seeds: int = 3,
    failed_methods: tuple[str, ...] = (),
    with_trials: bool = False,
) -> Results:
    """Results of a study written to disk; all seeds of the ``broken`` methods failed."""
    rng = np.random.default_rng(0)
    names = ["plain", *methods]
    records = []
    for one in noise:
        for method in ("teacher", *names):
            for seed in range(seeds):
                run = record(method, seed, ("digits", one, None, None, "noisy", "big", "small"), rng)
                if method in failed_methods:
                    is_missing = (
                        *METRICS,
                        "per_class_accuracy",
                        "reliability",
                        "risk_coverage",
                        "corruptions",
                        "pgd",
                        "curve",
                    )
                    run |= dict.fromkeys(is_missing) | {"status": "failed", "error": f"became nan {HOSTILE}"}
                records.append(run)
    declaration = {
        "name": f"a study {HOSTILE}",
        "data": ["digits"],
        "noise": list(noise),
        "imbalance": [None],
        "per_class": [None],
        "teacher_labels": ["noisy"],
        "pairs": [["big", "small"]],
        "methods": {name: {"method": name, "settings": {}} for name in names},
        "seeds": list(range(seeds)),
        "train": {"epochs": 2},
        "budget": 2 if with_trials else 0,
        "evaluate": {"corruptions": True, "pgd": [0.01], "ood": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(declaration))
    (folder / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in records))
    if with_trials:
        trials = [
            records[-1]
            | {"space": {"weight": HOSTILE}, "score": score, "chosen": is_selected, "settings": {"weight": HOSTILE}}
            for score, is_selected in ((0.7, False), (0.8, True))
        ]
        (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    return Results.read(folder)
