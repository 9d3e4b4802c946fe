"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import Config, read_config
from tutelage.data import Pixels
from tutelage.errors import TutelageError
from tutelage.files import as_path, atomic_write
from tutelage.report.image import POLICY
from tutelage.report.page import REPORT, style_sheet, templates
from tutelage.report.run.curves import training_curve
from tutelage.report.run.drawings import RunDrawing, run_drawings
from tutelage.report.run.mistakes import Mistakes, worst_mistakes
from tutelage.runs.folder import CONFIG, VERSIONS, RunFolder
from tutelage.runs.models import DEFAULT_TASK
from tutelage.tasks import Task, find_task
from tutelage.text import printable_values
from tutelage.trust import Trust

_MATRIX = 25  # classes, up to which the confusion matrix is listed
_PAIRS = 5


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / CONFIG).is_file()


def write_run_page(
    folder: str | Path, path: str | Path | None = None, *, device: str = "auto", trust: Trust | None = None
) -> Path:
    """Write the report of a finished run, and return its path.

    The numbers are those of ``result.json``. For the worst mistakes, or the drawings of the task, the student
    predicts the test split again; if its data cannot be opened, the page says so and shows none.

    Args:
        folder: of the run.
        path: the file; by default ``report.html`` in the folder.
        device: where to predict.
        trust: whose code may be imported, as in ``open_model``.

    Raises:
        TutelageError: the run is not finished, or the file cannot be written.
    """
    folder = as_path(folder)
    run_folder = RunFolder(folder)
    result = run_folder.result() if is_run(folder) else None
    if result is None:
        raise TutelageError(f"{folder} is not the folder of a finished run; run its command again, or name another")
    task = find_task(result.get("task") or DEFAULT_TASK)
    samples: Mistakes | tuple[RunDrawing, ...] | str
    try:
        if task.has_drawings:
            samples = run_drawings(str(folder), task, device=device, trust=trust)
        else:
            samples = worst_mistakes(str(folder), device=device, trust=trust)
    except TutelageError as error:
        samples = printable_values(str(error))
    target = folder / REPORT if path is None else as_path(path)
    text = _render(folder, result, run_folder.history(), task, samples)
    atomic_write(target, text.encode(), follow=path is not None)
    return target


def _render(
    folder: Path,
    result: Mapping[str, Any],
    history: tuple[dict[str, Any], ...],
    task: Task,
    samples: Mistakes | tuple[RunDrawing, ...] | str,
) -> str:
    config = Config(**{k: v for k, v in read_config(folder / CONFIG).items() if k in Config.model_fields})
    versions = read_config(folder / VERSIONS) if (folder / VERSIONS).is_file() else {}
    entries = printable_values(dict(result))
    curve = training_curve(history, task)
    cost = entries["cost"]
    facts = [
        *task.describe(entries),
        ("parameters", f"{cost['parameters']:,}"),
        (f"FLOPs per {entries['data'].get('sample', Pixels.sample)}", f"{cost['flops']:,}"),
        ("latency", f"{cost['latency_ms']:.2f} ms"),
        ("training time", f"{entries['seconds']:,.0f} s"),
    ]
    test = entries["test"]
    names = entries["data"]["classes"]
    counts = _counts(test.get("confusion"), len(names))
    return (
        templates(__package__)
        .get_template("run.html")
        .render(
            policy=POLICY,
            style=style_sheet(),
            definitions=curve.definitions,
            folder=printable_values(str(folder)),
            name=printable_values(folder.resolve().name),
            config=printable_values(config.model_dump(mode="json")),
            data=entries["data"]["name"],
            samples=test.get("samples"),
            facts=facts,
            calibration=entries.get("calibration"),
            initial=entries.get("init"),
            curve=curve,
            classes=_classes(test, task, names, entries["data"]["counts"].get("test")),
            class_note=task.class_note,
            counted=task.counted,
            names=names if len(names) <= _MATRIX else [],
            matrix=_matrix(names, counts) if len(names) <= _MATRIX else [],
            pairs=most_confused(names, counts, _PAIRS),
            mistakes=None if task.has_drawings else samples,
            drawings=samples if task.has_drawings else None,
            command=entries.get("command", ""),
            versions=", ".join(f"{name} {version}" for name, version in printable_values(versions).items()),
        )
    )


def _counts(confusion: Any, classes: int) -> list[list[int]]:
    """The confusion matrix; empty for many classes, and if it is not one of as many classes."""
    rows = confusion if isinstance(confusion, list) and len(confusion) == classes else []
    whole = all(
        isinstance(row, list) and len(row) == classes and all(isinstance(count, int) for count in row) for row in rows
    )
    return rows if whole else []


def _classes(test: Mapping[str, Any], task: Task, names: list[str], counts: list[int] | None) -> list[dict[str, Any]]:
    """The metrics of each class, and what it has in the test split, such as samples; the lowest first metric first."""
    columns = {title: _by_class(test[key], names) for title, key in task.class_metrics.items() if test.get(key)}
    if not columns:
        return []
    rows = [
        {"name": name, "count": counts[number] if counts else None}
        | {title: values.get(name) for title, values in columns.items()}
        for number, name in enumerate(names)
    ]
    first = next(iter(columns))
    return sorted(rows, key=lambda row: 2.0 if row[first] is None else row[first])


def _by_class(values: Any, names: list[str]) -> Mapping[str, Any]:
    """The values of a metric by the names of the classes; a list is in their order."""
    return values if isinstance(values, Mapping) else dict(zip(names, values, strict=False))


def _matrix(names: list[str], counts: list[list[int]]) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """By true class: for each predicted class the number of samples, its share of the row, and whether it is right."""
    return [
        (name, [(count, count / max(sum(row), 1), true == predicted) for predicted, count in enumerate(row)])
        for true, (name, row) in enumerate(zip(names, counts, strict=False))
    ]


def most_confused(names: list[str], counts: list[list[int]], pairs: int) -> list[tuple[str, str, int, int]]:
    """(true class, predicted class, number, samples of the true class) of the most frequent wrong predictions."""
    wrong = [
        (names[true], names[predicted], count, sum(row))
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and predicted != true
    ]
    return sorted(wrong, key=lambda entry: -entry[2])[:pairs]
