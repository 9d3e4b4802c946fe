"""The command ``tutelage labels``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tutelage.cli.options import PATH_OPTION, Json, config_options
from tutelage.config import Config

_OTHER = {
    "data", "student", "method", "settings", "validation", "teacher", "teacher_mean", "teacher_std", "teacher_size",
    "teacher_cache", "teacher_cache_dtype",
}  # fmt: skip
_FIELDS = tuple(name for name in Config.model_fields if name not in _OTHER)


@config_options(_FIELDS, {name: Config.model_fields[name].default for name in _FIELDS})
def labels(
    data: Annotated[str, typer.Argument(help="Data set, for example folder:PATH or npz:FILE.")],
    model: Annotated[
        str | None,
        typer.Option(help="Network that judges the labels; default resnet8, or a linear classifier of --features."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Trained network whose features take the place of the images: a run, MODEL@WEIGHTS, timm/NAME or "
            "hf/NAME, of any classes. Fast, and better where samples are few."
        ),
    ] = None,
    by: Annotated[
        Literal["posterior", "out_of_sample", "differences", "agreement", "drpl"],
        typer.Option(help="Evidence that orders the labels."),
    ] = "posterior",
    folds: Annotated[int, typer.Option(min=2, help="Number of networks, each trained without one fold.")] = 5,
    repair: Annotated[
        Literal["soften", "remove", "replace"],
        typer.Option(help="Train on softened labels, without the doubted ones, or with them replaced."),
    ] = "soften",
    apply: Annotated[
        bool, typer.Option("--apply", help="Also write labels.csv, with doubted labels repaired.")
    ] = False,
    compare: Annotated[bool, typer.Option(help="Train a network with all labels too, to compare.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the results.", **PATH_OPTION)] = Path("runs") / "labels",
    json_: Json = False,
    **fields: Any,
) -> None:
    """Find training labels that look wrong, without a teacher: a ranked list and a page with pictures."""
    from tutelage.labels import label_issues, save_issues
    from tutelage.labels.issues import TRAINED_ON
    from tutelage.report.console import print_plain, run_progress, stderr_console

    with run_progress(stderr_console(), quiet=json_) as report:
        issues = label_issues(
            data,
            model,
            features=features,
            by=by,
            folds=folds,
            repair=repair,
            compare=compare,
            out=out,
            report=report,
            **fields["fields"],
        )
    files = save_issues(issues, out, apply=apply)
    summary = issues.summary()
    if json_:
        print(json.dumps({**{name: value for name, value in summary.items() if name != "issues"}, "folder": str(out)}))
        return
    rate = issues.noise_rate
    print_plain(
        f"{summary['doubted']:,} of {summary['labels']:,} labels look wrong; estimated noise rate "
        f"{100 * rate.mean:.1f} % (95 % interval over folds: {100 * max(rate.low, 0.0):.1f} to {100 * rate.high:.1f} %)"
    )
    if issues.plain_accuracy is not None and issues.cleaned_accuracy is not None:
        print_plain(
            f"test accuracy with the labels as they are {100 * issues.plain_accuracy:.1f} %, with "
            f"{TRAINED_ON[repair]} {100 * issues.cleaned_accuracy:.1f} % (one seed)"
        )
    for file in files:
        print_plain(file)
    if apply:
        print_plain(
            f"train on the repaired labels: tutelage train --data {data} --noise human:{out / 'labels.csv'}:cleaned"
        )
