"""The command ``tutelage calibrate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tutelage.cli.options import Json, TrustAll
from tutelage.errors import TutelageError


def calibrate(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.")],
    coverage: Annotated[
        float, typer.Option(help="Probability, at least, that a prediction set contains the true class.")
    ] = 0.9,
    sets: Annotated[
        str, typer.Option(help="Prediction sets: lac (smallest on average) or aps (larger for difficult images).")
    ] = "lac",
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    trust: TrustAll = False,
    json_: Json = False,
) -> None:
    """Calibrate a run's student on its held-out samples: temperature scaling and conformal prediction sets.

    The calibration is recorded in the weights file; predict, evaluate and export use it.
    """
    if sets not in ("lac", "aps"):
        raise TutelageError(f"--sets takes lac or aps, got {sets!r}; lac has the smallest sets")
    from tutelage.runs.calibrate import calibrate as calibrate_run

    kind: Any = sets
    calibrated = calibrate_run(run, coverage=coverage, sets=kind, device=device, trust=True if trust else None)
    if json_:
        recorded = calibrated.calibration.model_dump()
        print(json.dumps({**asdict(calibrated), "calibration": recorded}, allow_nan=False))
        return
    from rich.table import Table

    from tutelage.report.console import Terminal

    calibration, before, after = calibrated.calibration, calibrated.before, calibrated.after
    table = Table("", "before", "after", title=f"{run}, on the test split")
    for name, title in {"temperature": "temperature", "nll": "NLL", "brier": "Brier score", "ece": "ECE"}.items():
        table.add_row(title, *(_number(values[name]) for values in (before, after)))
    table.add_row(f"coverage of the sets ({calibration.coverage:.0%} requested)", "", _number(after["coverage"]))
    table.add_row("mean number of classes in a set", "", _number(after["set_size"]))
    Terminal().print(table)
    print(f"fitted on {calibration.samples:,} held-out samples, and recorded in the weights file")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
