"""The commands that list methods, tasks and models, and describe a data set."""

from __future__ import annotations

import inspect
import json
import textwrap
import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import typer

from tutelage.cli.options import Json, SkipBad, Test
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.formats import names

ANY_TASK = "any"  # of methods that train for the task of the data's targets
NO_EVIDENCE = "-"


def methods(
    name: Annotated[str | None, typer.Argument(help="Describe this method.")] = None, json_: Json = False
) -> None:
    """List the methods, or describe one."""
    from tutelage.methods import find, installed
    from tutelage.methods._description import parse_docstring
    from tutelage.report.console import print_plain

    if name is not None:
        method = find(name)
        print_plain(f"{method.name} ({method.family}; {method.paper})")
        print_plain(f"task: {method.task or ANY_TASK}; written from: {method.evidence or NO_EVIDENCE}")
        docstring = parse_docstring(inspect.getdoc(method.function) or "")
        print_plain(f"\n{docstring.summary}\n\n{docstring.text}\n\nparameters, as in --set NAME=VALUE:")
        for key, text in method.parameters.items():
            print_plain(f"  {key} ({text})")
            print_plain(textwrap.indent(textwrap.fill(docstring.arguments.get(key, ""), 110), "      "))
        if not method.parameters:
            print_plain("  none")
        for title, text in docstring.sections.items():
            print_plain(f"\n{title}: {text}")
        return
    available = _importable(find, installed())
    if json_:
        entries = [
            {
                "name": method.name,
                "family": method.family,
                "task": method.task,
                "evidence": method.evidence,
                "paper": method.paper,
                "summary": method.summary,
                "parameters": list(method.parameters),
            }
            for method in available
        ]
        print(json.dumps(entries))
        return
    rows = [(method.name, method.summary, method.family) for method in available]
    _print_list(("method", "summary", "family"), rows)


def tasks(json_: Json = False) -> None:
    """List the tasks and their main metrics (--json: all metrics)."""
    from tutelage.tasks import Metric, find_task, task_names

    available = _importable(find_task, task_names())
    if json_:
        entries = [
            {
                "name": task.name,
                "summary": task.summary,
                "metrics": {
                    name: {"title": metric.title, "better": metric.better, "share": metric.percent}
                    for name, metric in task.metrics.items()
                    if isinstance(metric, Metric)
                },
            }
            for task in available
        ]
        print(json.dumps(entries))
        return
    _print_list(("task", "summary", "main metric"), [(task.name, task.summary, task.main_metric) for task in available])


def models(json_: Json = False) -> None:
    """List the available networks."""
    from tutelage.models.zoo import families

    rows = [(", ".join(f.examples), f.description, f.paper) for f in families().values()]
    rows += [
        ("module:attr", "your own class, function or nn.Module", ""),
        ("timm/NAME", "any model of timm (extra timm)", ""),
        ("hf/NAME", "any image or text classifier of Hugging Face transformers (extra hf)", ""),
    ]
    if json_:
        print(json.dumps([{"names": names, "description": text, "paper": paper} for names, text, paper in rows]))
        return
    _print_list(("names", "description"), [row[:2] for row in rows], wrap_names=True)


def data(
    spec: Annotated[
        str,
        typer.Argument(help=f"Data set: {names()}."),
    ] = "digits",
    image_size: Annotated[
        int | None, typer.Option(min=4, help="Resize image files to this many pixels per side.")
    ] = None,
    test: Test = None,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Describe a data set: classes, counts, mean and deviation."""
    from tutelage.data import open_data
    from tutelage.report.console import print_table

    data_set = open_data(spec, image_size=image_size, test=test, skip_bad=skip_bad)
    summary = data_set.summary()
    if json_:
        print(json.dumps(summary, allow_nan=False))
        return
    splits = list(summary["counts"])
    rows = [
        (name, *(str(summary["counts"][split][c]) for split in splits)) for c, name in enumerate(summary["classes"])
    ]
    unlabelled = [int((~split.targets.labelled(split.labels)).sum()) for split in data_set.splits.values()]
    if any(unlabelled):
        rows.append(("without a label", *map(str, unlabelled)))
    noun, counted = data_set.targets.noun, data_set.targets.counted
    counts_samples = counted == "samples"
    total = "total" if counts_samples else data_set.modality.noun
    rows.append((total, *(str(summary["samples"][split]) for split in splits)))
    print_table((noun if counts_samples else f"{noun} ({counted})", *splits), rows)
    mean, std = ([round(value, 4) for value in summary[name]] for name in ("mean", "std"))
    shape = tuple(summary["image_shape"])
    statistics = f"; training {data_set.modality.unit}: mean {mean}, std {std}" if data_set.modality.unit else ""
    print(f"{data_set.modality.noun} {shape}, for {data_set.targets.task}{statistics}")


T = TypeVar("T")


def _importable(find: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """The methods or tasks of these names; those of packages that cannot be imported are left out with a warning."""
    items = []
    for name in names:
        try:
            items.append(find(name))
        except TutelageError as error:
            warnings.warn(str(error), TutelageWarning, stacklevel=2)
    return items


def _print_list(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, wrap_names: bool = False) -> None:
    """Print a table in which only the second column wraps; with ``wrap_names`` the first, too."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tutelage.report.console import Terminal

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(head):
        table.add_column(title, no_wrap=index != 1 and not wrap_names)
    for row in rows:
        table.add_row(*row)
    Terminal().print(table)
