"""The commands of studies: run one, report on it, compare two."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.options import Json, Track, TrustAll, settings_from, table_of
from tutelage.errors import unknown

if TYPE_CHECKING:
    from tutelage.studies.study import Study
    from tutelage.studies.workers import Workers


def study(
    source: Annotated[str, typer.Argument(help="A .toml, .yaml or .py file, or one that comes along: nine.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the study.  [default: runs/SOURCE]")] = None,
    data: Annotated[str | None, typer.Option(help="Data sets, by commas.")] = None,
    noise: Annotated[str | None, typer.Option(help="Label noises, by commas: 0,0.2,pair:0.4")] = None,
    imbalance: Annotated[str | None, typer.Option(help="Imbalances, by commas: none,powerlaw:0.2")] = None,
    per_class: Annotated[str | None, typer.Option(help="Training samples of each class, by commas.")] = None,
    teachers: Annotated[str | None, typer.Option(help="Networks to learn from, by commas.")] = None,
    students: Annotated[str | None, typer.Option(help="Networks to train, by commas.")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, by commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many, or which, by commas: 0,1,")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other field, as epochs=5; repeatable.")] = None,
    corruptions: Annotated[bool | None, typer.Option("--corruptions", help="Judge on corrupted images too.")] = None,
    pgd: Annotated[str | None, typer.Option(help="Radii of an attack, by commas, in pixels of [0, 1].")] = None,
    ood: Annotated[str | None, typer.Option(help="Another data set, to be told from this one.")] = None,
    budget: Annotated[int | None, typer.Option(help="Settings to try for each method.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.  [default: as many as cores]")] = None,
    together: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side in a process, at most.  [default: 16]")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Run on a Ray cluster instead: auto, local or its address.")] = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
) -> None:
    """Compare methods under conditions, over seeds: only what is missing is run, and the report is made anew."""
    from tutelage.studies.study import Study, read_study
    from tutelage.studies.workers import LocalWorkers, RayWorkers
    from tutelage.trust import typed

    said = read_study(source)
    fields: dict[str, Any] = {"data": data, "noise": noise, "imbalance": imbalance, "per_class": per_class}
    fields |= {"teachers": teachers, "students": students, "methods": methods, "seeds": seeds, "budget": budget}
    said |= {name: value for name, value in fields.items() if value is not None}
    if teachers or students:
        said.pop("pairs", None)
    said["train"] = {**table_of(said.get("train"), "the study: train"), **settings_from(set_ or [])}
    asked = {"corruptions": corruptions, "pgd": pgd, "ood": ood}
    evaluate = table_of(said.get("evaluate"), "the study: evaluate")
    said["evaluate"] = {**evaluate, **{name: value for name, value in asked.items() if value is not None}}
    place = partial(RayWorkers, ray) if ray else partial(LocalWorkers, workers)
    how = {} if together is None else {"together": together}
    names = [teachers, students, methods]
    trusted = trust or typed(*(name.strip() for text in names if text for name in text.split(",")))
    study = Study(**said)
    if Path(source).suffix == ".py":  # the user ran this code, which names them
        trusted = trust or study.code
    _run_study(study, out or Path("runs") / Path(source).stem, place, json_, track=track, trust=trusted, **how)


def _run_study(study: Study, out: Path, workers: Callable[[], Workers], as_json: bool, **how: Any) -> None:
    from tutelage.report.console import say, side_console, watching_study
    from tutelage.report.page import write_page
    from tutelage.report.tables import table_as
    from tutelage.studies.runner import failure_of, try_study

    with watching_study(side_console(), quiet=as_json) as watch:
        results = try_study(study, out, workers=workers(), watch=watch, **how)
    write_page(results, out / "report.html")
    print(table_as(results, "json" if as_json else "md").decode())
    if not as_json:
        say(out / "report.html")
    failure = failure_of(results)
    if failure:
        print(f"error: {failure}", file=sys.stderr)
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/demo"),
    methods: Annotated[str | None, typer.Option(help="By commas.  [default: the nine of the study]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of every network.")] = 20,
    json_: Json = False,
) -> None:
    """Compare nine methods with a plain student on real digits of which 40 % are wrongly labelled."""
    from tutelage.studies.study import Study, read_study
    from tutelage.studies.workers import LocalWorkers

    said = read_study("demo")
    said |= {"seeds": seeds, "methods": methods or said["methods"], "train": {**said["train"], "epochs": epochs}}
    _run_study(Study(**said), out, LocalWorkers, json_)


Metric = Annotated[str, typer.Option(help="A number of the runs: accuracy, nll, ece, memorised, seconds, ...")]


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.")],
    format_: Annotated[str, typer.Option("--format", help="html, md, csv, json or parquet")] = "html",
    out: Annotated[
        Path | None, typer.Option(help="File to write.  [default: FOLDER/report.html or .parquet, or the screen]")
    ] = None,
    metric: Metric = "accuracy",
    interval: Annotated[str, typer.Option(help="t or bootstrap")] = "t",
) -> None:
    """Make the report of a study: a page, or its table."""
    from tutelage.report.console import say
    from tutelage.report.tables import FORMATS, table_as, write_table
    from tutelage.studies.results import Results

    results = Results.read(folder)
    if format_ == "html":
        from tutelage.report.page import write_page

        path = out or folder / "report.html"
        write_page(results, path, metric=metric, interval=interval)
    elif format_ not in FORMATS:
        raise unknown("format", format_, ("html", *FORMATS))
    elif out is None and format_ != "parquet":
        print(table_as(results, format_, metric=metric, interval=interval).decode(), end="")
        return
    else:
        path = out or folder / "report.parquet"
        write_table(results, format_, path, metric=metric, interval=interval)
    say(path)


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a study or of a finished run.")],
    b: Annotated[Path, typer.Argument(help="Another of the same kind.")],
    metric: Metric = "accuracy",
    json_: Json = False,
) -> None:
    """Compare two studies or two runs; refused where what should be equal is not."""
    from tutelage.report.differences import show_runs, show_studies
    from tutelage.studies.difference import compare_runs, compare_studies
    from tutelage.studies.results import is_study

    if is_study(a) or is_study(b):
        show_studies(compare_studies(a, b, metric), as_json=json_)
    else:
        show_runs(compare_runs(a, b), as_json=json_)
