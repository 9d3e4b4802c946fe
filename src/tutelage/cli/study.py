"""The commands of studies: run one, report on it, compare two."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.options import PATH, PATH_OPTION, Json, Track, TrustAll, config_options, settings_from, table_of
from tutelage.config import Config
from tutelage.errors import TutelageError, unknown
from tutelage.files import is_read_only
from tutelage.text import message

if TYPE_CHECKING:
    from tutelage.studies.study import Study
    from tutelage.studies.workers import Workers


_GRID = ("data", "noise", "imbalance", "per_class", "student", "teacher", "method", "settings", "seed")
_TRAIN = tuple(name for name in Config.model_fields if name not in (*_GRID, "workers"))
"""The fields that all runs of a study share, without ``workers``: a study's workers are training processes."""


@config_options(_TRAIN, {})
def study(
    source: Annotated[str, typer.Argument(help="A study file (.toml, .yaml or .py), or a built-in study: nine, demo.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study.  [default: runs/SOURCE]", **PATH_OPTION)
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data sets, comma-separated.")] = None,
    noise: Annotated[str | None, typer.Option(help="Label noise levels, comma-separated: 0,0.2,pair:0.4.")] = None,
    imbalance: Annotated[str | None, typer.Option(help="Class imbalances, comma-separated: none,powerlaw:0.2.")] = None,
    per_class: Annotated[
        str | None, typer.Option(help="Numbers of training samples per class, comma-separated: none,100.")
    ] = None,
    teachers: Annotated[str | None, typer.Option(help="Teacher networks, comma-separated.")] = None,
    students: Annotated[str | None, typer.Option(help="Student networks, comma-separated.")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, comma-separated; tutelage methods lists them.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Number of seeds, or the seeds themselves, comma-separated: 5, or 0,10,20.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a field of every run: name=value. Repeatable.", metavar="<name=value>"),
    ] = None,
    corruptions: Annotated[
        bool | None, typer.Option("--corruptions", help="Evaluate on corrupted images too: noise, blur, contrast, ...")
    ] = None,
    pgd: Annotated[
        str | None, typer.Option(help="Evaluate under PGD attacks of these radii too: 0.01,0.03.", metavar="<radii>")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Evaluate under attacks too, and the worst of them: pgd:0.03,square:0.03,den.", metavar="<attacks>"
        ),
    ] = None,
    ood: Annotated[str | None, typer.Option(help="Out-of-distribution data set to detect.")] = None,
    budget: Annotated[int | None, typer.Option(help="Number of settings to try for each method.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of worker processes.  [default: number of cores]")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Run on a Ray cluster: auto, local or its address.")] = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **recipe: Any,
) -> None:
    """Compare methods under several conditions, over seeds. Only missing runs are trained; the report is rewritten.

    The exit code is 1 if runs failed.
    """
    from tutelage.studies.study import Study, read_study
    from tutelage.studies.workers import LocalWorkers, RayWorkers
    from tutelage.trust import typed_specs

    declaration = read_study(source)
    fields: dict[str, Any] = {"data": data, "noise": noise, "imbalance": imbalance, "per_class": per_class}
    fields |= {"teachers": teachers, "students": students, "methods": methods, "seeds": seeds, "budget": budget}
    declaration |= {name: value for name, value in fields.items() if value is not None}
    if teachers or students:
        declaration.pop("pairs", None)
    if data or methods:  # which determine the task
        declaration.pop("task", None)
    typed_fields = Config(**recipe["fields"]).model_dump(mode="json", include=set(recipe["fields"]))
    declaration["train"] = {
        **table_of(declaration.get("train"), "the study: train"),
        **typed_fields,
        **settings_from(set_ or []),
    }
    extra = {"corruptions": corruptions, "pgd": pgd, "attacks": attacks, "ood": ood}
    evaluate = table_of(declaration.get("evaluate"), "the study: evaluate")
    declaration["evaluate"] = {**evaluate, **{name: value for name, value in extra.items() if value is not None}}
    make_workers = partial(RayWorkers, ray) if ray else partial(LocalWorkers, workers)
    names = [teachers, students, methods]
    trusted = trust or typed_specs(*(name.strip() for text in names if text for name in text.split(",")))
    study = Study(**declaration)
    if Path(source).suffix == ".py":  # code that the user ran and that names them
        trusted = trust or study.code
    _run_study(study, out or Path("runs") / Path(source).stem, make_workers, json_, track=track, trust=trusted)


def _run_study(study: Study, out: Path, workers: Callable[[], Workers], as_json: bool, **options: Any) -> None:
    from tutelage.report.conclusions import summary
    from tutelage.report.console import print_plain, stderr_console, study_progress
    from tutelage.report.page import write_page
    from tutelage.report.tables import table_as
    from tutelage.report.terminal import print_tables
    from tutelage.studies.failures import failure_summary
    from tutelage.studies.runner import run_study

    with study_progress(stderr_console(), quiet=as_json) as watch:
        results = run_study(study, out, workers=workers(), watch=watch, check=False, **options)
    page = None if is_read_only(out) else write_page(results)
    if as_json:
        print(table_as(results, "json").decode())
    else:
        if sys.stdout.isatty():
            print_tables(results)
        else:
            print(table_as(results, "md").decode())
        print_plain(
            f"{page}\n" if page else f"{out} is not writable; tutelage report {out} --out FILE writes the page\n"
        )
        print_plain("\n".join(summary(results)))
    failure = failure_summary(results)
    if failure:
        print(f"error: {message(failure)}", file=sys.stderr)
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.", **PATH_OPTION)] = Path("runs/demo"),
    methods: Annotated[
        str | None,
        typer.Option(help="Methods, comma-separated.  [default: hinton,fitnet,at,sp,rkd,dml]"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of every network.")] = 20,
    json_: Json = False,
) -> None:
    """Compare six methods with a plain student on handwritten digits, 40 % of which have wrong labels."""
    from tutelage.studies.study import Study, read_study
    from tutelage.studies.workers import LocalWorkers

    declaration = read_study("demo")
    declaration |= {
        "seeds": seeds,
        "methods": methods or declaration["methods"],
        "train": {**declaration["train"], "epochs": epochs},
    }
    _run_study(Study(**declaration), out, LocalWorkers, json_)


Metric = Annotated[
    str | None,
    typer.Option(help="Metric: accuracy, nll, ece, memorised, seconds, ...  [default: the task's main metric]"),
]


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study or of a finished run.", **PATH)],
    format_: Annotated[
        str, typer.Option("--format", help="Format: html (the page), or the table as md, latex, csv, json or parquet.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write.  [default: FOLDER/report.html or .parquet, or standard output]", **PATH_OPTION
        ),
    ] = None,
    metric: Metric = None,
    interval: Annotated[str, typer.Option(help="95 % intervals: t (Student's t) or bootstrap.")] = "t",
    trust: TrustAll = False,
) -> None:
    """Write the report of a study, a page or its table, or the page of a run with its worst mistakes."""
    from tutelage.report.console import print_plain
    from tutelage.report.run import is_run, write_run_page
    from tutelage.report.tables import FORMATS, table_as, write_table
    from tutelage.studies.results import Results

    if is_run(folder):
        if format_ != "html" or metric is not None:
            raise TutelageError(f"{folder} is a run, whose report is a page; leave out --format and --metric")
        print_plain(write_run_page(folder, out, trust=True if trust else None))
        return

    results = Results.read(folder)
    if format_ == "html":
        from tutelage.report.page import write_page

        path = write_page(results, out, metric=metric, interval=interval)
    elif format_ not in FORMATS:
        raise unknown("format", format_, ("html", *FORMATS))
    elif out is None and format_ != "parquet":
        print(table_as(results, format_, metric=metric, interval=interval).decode(), end="")
        return
    else:
        path = write_table(results, format_, out, metric=metric, interval=interval)
    print_plain(path)


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a study or of a finished run.", **PATH)],
    b: Annotated[Path, typer.Argument(help="Folder of another study, or of another run.", **PATH)],
    metric: Metric = None,
    json_: Json = False,
) -> None:
    """Compare two studies or two runs. They must agree in data, training and evaluation."""
    from tutelage.report.differences import print_run_difference, print_study_difference
    from tutelage.studies.difference import compare_runs, compare_studies
    from tutelage.studies.results import is_study

    if is_study(a) or is_study(b):
        print_study_difference(compare_studies(a, b, metric), as_json=json_)
    else:
        print_run_difference(compare_runs(a, b), as_json=json_)
