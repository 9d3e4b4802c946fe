"""The files in which the labels that look wrong are listed."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from tutelage.data.batch import UNLABELLED
from tutelage.files import as_path, atomic_write
from tutelage.labels.issues import LabelIssues
from tutelage.labels.page import page

TABLE, SUMMARY, PAGE, LABELS = "issues.csv", "issues.json", "labels.html", "labels.csv"


def save_issues(issues: LabelIssues, folder: str | os.PathLike[str], *, apply: bool = False) -> list[Path]:
    """Write ``issues.csv`` (every labelled sample, ranked), ``issues.json`` (the summary) and ``labels.html``.

    Args:
        issues: what ``label_issues`` returned.
        folder: created if it does not exist.
        apply: also write ``labels.csv``, a row for each sample of the training split as it was loaded, with the columns
            ``cleaned``, the labels with doubted ones repaired, and ``clean``, the labels of the data set itself, by
            which ``HumanLabels`` recognises it. ``--noise human:FOLDER/labels.csv:cleaned`` trains on the repaired
            labels. The data set is never changed.

    Returns:
        The files.
    """
    target = as_path(folder)
    contents = {
        TABLE: _csv([*issues.rows()]),
        SUMMARY: json.dumps(issues.summary(), indent=1, allow_nan=False) + "\n",
        PAGE: page(issues),
    }
    if apply:
        split = issues.data.train
        columns = {"cleaned": issues.cleaned_labels(), "clean": split.clean_labels}
        by_index = torch.full((int(split.index.max()) + 1, len(columns)), UNLABELLED)
        by_index[split.index] = torch.stack([*columns.values()], 1)
        contents[LABELS] = _csv([dict(zip(columns, row, strict=True)) for row in by_index.tolist()])
    for name, text in contents.items():
        atomic_write(target / name, text.encode())
    return [target / name for name in contents]


def _csv(lines: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
