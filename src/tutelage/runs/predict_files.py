"""Predictions for files by a network for any task: a table, and files such as masks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.files import as_path, atomic_write, check_new
from tutelage.models.external.common import MeanStd
from tutelage.runs.prediction_inputs import Opened, Paths, open_inputs
from tutelage.runs.tables import save_table
from tutelage.tasks import find_task
from tutelage.trust import Trust

AT_ONCE = 256  # inputs whose outputs are in memory

Progress = Callable[[int, int], None]
"""Called with how many inputs are done, and with their number."""


@dataclass(frozen=True)
class FilePredictions:
    """The predictions for files.

    Attributes:
        task: the name of the task.
        rows: the lines of the table, plain values by column: first ``file``, ``text`` or ``video``, then what the task
            predicts. There may be several lines for one input, or none.
        inputs: the number of inputs.
        written: the files that were written.
        unreadable: the files that cannot be decoded and were left out.
        coverage: the probability, at least, that the column ``set`` contains the true class; ``None`` without one.
    """

    task: str
    rows: tuple[Mapping[str, Any], ...]
    inputs: int
    written: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
    coverage: float | None = None

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write ``rows`` as a new CSV file, as ``save_table`` does.

        Raises:
            TutelageError: the file exists.
        """
        save_table(file, self.rows, find_task(self.task).prediction_columns)


def predict_files(
    run: str | os.PathLike[str],
    paths: Paths,
    *,
    out: str | os.PathLike[str] | None = None,
    top: int = 1,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    mean_std: MeanStd | None = None,
    skip_bad: bool = False,
    tokenizer: str | None = None,
    device: str = "auto",
    workers: int = 2,
    trust: Trust | None = None,
    progress: Progress | None = None,
) -> FilePredictions:
    """Predict for files, a part of them at a time, by a network for any task.

    Args:
        run, paths, classes, image_size, mean_std, skip_bad, tokenizer, device, trust: as in ``open_inputs``.
        out: the folder for files of predictions: masks or maps as PNG files, ``detections.json`` in COCO's format of
            results, tracks as text files. Each has the name of its input, in folders also their path. None may exist.
        top: how many classes to list for each input, for classification.
        workers: processes that decode images.
        progress: called after each part.

    Raises:
        TutelageError: as in ``open_inputs``, the task writes no files, or one of them exists.
    """
    opened = open_inputs(
        run,
        paths,
        classes=classes,
        image_size=image_size,
        mean_std=mean_std,
        skip_bad=skip_bad,
        tokenizer=tokenizer,
        device=device,
        trust=trust,
    )
    task, inputs = opened.task, opened.inputs
    if top != 1 and not task.ranked:
        raise TutelageError(f"a number of classes is for classification, and this is {task.name}; leave out --top")
    targets = {} if out is None else _targets(opened, as_path(out))
    joint = None if out is None or not task.joint_name else as_path(out) / task.joint_name
    for file in (*targets.values(), *([] if joint is None else [joint])):
        check_new(file)
    rows: list[Mapping[str, Any]] = []
    number = 0
    for part in inputs.parts(AT_ONCE):
        for name, prediction in zip(
            part.names, task.predictions(opened.request(part, workers=workers, top=top)), strict=True
        ):
            rows += ({inputs.noun: name, **row} for row in prediction.rows)
            if number in targets and prediction.content is not None:
                atomic_write(targets[number], prediction.content)
            number += 1
        if progress is not None:
            progress(number, len(inputs))
    if joint is not None:
        atomic_write(joint, task.joint_file(rows))
    calibration = opened.network.calibration
    return FilePredictions(
        task.name,
        tuple(rows),
        len(inputs),
        (*targets.values(), *([] if joint is None else [joint])),
        inputs.unreadable,
        calibration.coverage if task.ranked and calibration is not None else None,
    )


def _targets(opened: Opened, folder: Path) -> dict[int, Path]:
    """The file of each prediction by the number of its input; none if the task has no such files.

    Raises:
        TutelageError: the task writes no files at all, or two inputs have one name.
    """
    task, outputs = opened.task, opened.inputs.outputs
    if not task.prediction_suffix and not task.joint_name:
        raise TutelageError(
            f"predictions for {task.name} are a table without files; leave out --out, and use --csv FILE or --json"
        )
    if not task.prediction_suffix:
        return {}
    name, count = Counter(outputs).most_common(1)[0]
    if count > 1:
        raise TutelageError(
            f"{count} inputs have the name {name}, whose predictions would be one file; predict them in different "
            "commands, or name the folder above them"
        )
    return {number: folder / f"{output}{task.prediction_suffix}" for number, output in enumerate(outputs)}
