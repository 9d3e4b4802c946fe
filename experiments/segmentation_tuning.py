"""Choose the settings of ``experiments.segmentation`` by the mean IoU on scenes that are not used for training."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from experiments.held_out import hold_out
from experiments.segmentation import FOR_TUNING, ROWS, Row, scenes, trained, training_scenes
from tutelage.tasks import Compute, find_task

SEEDS = (100,)  # not reported
RATES = ({"lr": 0.01}, {"lr": 0.02}, {"lr": 0.04})
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "plain": RATES,
    "plain, 16 times the labels": RATES,
    "hinton": ({"temperature": 4.0}, {"temperature": 1.0}, {"temperature": 1.0, "alpha": 0.5}),
    "cwd": ({"weight": 1.0}, {"weight": 3.0}, {"weight": 10.0}),
    "at": ({"beta": 25.0}, {"beta": 250.0}, {"beta": 1000.0}),
}


def with_setting(row: Row, setting: Mapping[str, Any]) -> Row:
    """The row with another learning rate, or with other settings of its method."""
    return replace(row, **setting) if "lr" in setting else replace(row, settings={**row.settings, **setting})


def main() -> None:
    """Print the mean IoU over the seeds of each row with each setting."""
    held_out = hold_out(scenes()["student"], FOR_TUNING)[1]
    task, start = find_task("segmentation"), time.process_time()
    for name, settings in SETTINGS.items():
        for setting in settings:
            ious = []
            for seed in SEEDS:
                row = with_setting(ROWS[name], setting)
                data = training_scenes(row, seed)
                model = trained(row, data, seed)
                ious.append(task.score(model, held_out, data, Compute(workers=0)))
            mean = torch.tensor(ious).mean()
            assert not math.isnan(mean)
            print(f"{name}, {setting}: {mean:.4f} {ious} ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
