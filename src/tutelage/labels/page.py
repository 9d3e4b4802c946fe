"""The doubted labels as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tutelage.labels.duplicates import near_duplicates
from tutelage.labels.issues import TRAINED_ON, LabelIssues
from tutelage.report.image import POLICY, data_uri
from tutelage.report.page import style_sheet, templates
from tutelage.text import printable, printable_values

_PER_CLASS, _IMAGES, _PAIRS, _DUPLICATES = 12, 600, 12, 24
_MATRIX = 25  # classes, up to which the whole noise matrix is shown


@dataclass(frozen=True)
class Sample:
    """A sample on the page; the image is a data URI, empty if the inputs are no images.

    The name of a file is relative to the folder of all files, so that it fits below the image.
    """

    image: str
    label: str
    suggested: str
    wrong: str
    name: str


def page(issues: LabelIssues) -> str:
    """Render the page."""
    classes = [printable(name) for name in issues.data.classes]
    return (
        templates(__package__)
        .get_template("labels.html")
        .render(
            name=printable(issues.data.name),
            policy=POLICY,
            style=style_sheet(),
            summary=printable_values({k: v for k, v in issues.summary().items() if k != "issues"}),
            trained_on=TRAINED_ON[issues.repair],
            by_class=_by_class(issues, classes),
            pairs=_pairs(issues, classes),
            matrix=_matrix(issues, classes),
            groups=_groups(issues, classes),
            duplicates=_duplicates(issues, classes),
        )
    )


def _by_class(issues: LabelIssues, classes: list[str]) -> list[dict[str, Any]]:
    """By label: how many samples have it, and how many of these labels are doubted."""
    totals = issues.labels[issues.labels >= 0].bincount(minlength=len(classes))
    doubted = issues.labels[issues.doubted].bincount(minlength=len(classes))
    return [
        {"label": label, "total": total, "doubted": number, "share": number / max(total, 1)}
        for label, total, number in zip(classes, totals.tolist(), doubted.tolist(), strict=True)
    ]


def _pairs(issues: LabelIssues, classes: list[str]) -> list[tuple[str, str, int]]:
    """(label, suggested class, number of doubted labels), the most frequent pairs first."""
    size = len(classes)
    codes = (issues.labels * size + issues.suggested)[issues.doubted]
    counts = codes.bincount(minlength=size**2)
    top = counts.argsort(descending=True, stable=True)[:_PAIRS].tolist()
    return [(classes[code // size], classes[code % size], int(counts[code])) for code in top if counts[code]]


def _matrix(issues: LabelIssues, classes: list[str]) -> list[tuple[str, list[tuple[float, float, float]]]]:
    """The noise matrix with the names of its rows, and the interval of each entry; empty for many classes."""
    if len(classes) > _MATRIX:
        return []
    entries = torch.cat([issues.noise_matrix[None], issues.matrix_interval]).permute(1, 2, 0).tolist()
    return [(name, [tuple(entry) for entry in row]) for name, row in zip(classes, entries, strict=True)]


def _groups(issues: LabelIssues, classes: list[str]) -> list[tuple[str, int, list[Sample]]]:
    """By label, the number of doubted labels and the most doubtful samples; classes with most of them first."""
    doubted = issues.doubted
    rows = [row for row in issues.ranking.tolist() if doubted[row]]
    by_label: dict[int, list[int]] = {}
    for row in rows:
        by_label.setdefault(int(issues.labels[row]), []).append(row)
    groups = sorted(by_label.items(), key=lambda item: -len(item[1]))[: _IMAGES // _PER_CLASS]
    folder = common_folder(issues.data.files)
    return [
        (classes[label], len(members), [_sample(issues, row, classes, folder) for row in members[:_PER_CLASS]])
        for label, members in groups
    ]


def _duplicates(issues: LabelIssues, classes: list[str]) -> list[tuple[Sample, Sample]]:
    pairs = near_duplicates(issues.data.train)[:_DUPLICATES]
    folder = common_folder(issues.data.files)
    return [
        (_sample(issues, first, classes, folder), _sample(issues, second, classes, folder)) for first, second in pairs
    ]


def common_folder(files: Sequence[str]) -> str:
    """The folder of all files, with the separator at its end; empty if they have none in common."""
    try:
        folder = os.path.commonpath({os.path.dirname(file) for file in files})
    except ValueError:  # no files, or absolute and relative ones
        return ""
    return os.path.join(folder, "") if folder else ""


def _sample(issues: LabelIssues, row: int, classes: list[str], folder: str) -> Sample:
    return Sample(
        data_uri(issues.data.train, row),
        classes[int(issues.labels[row])],
        classes[int(issues.suggested[row])],
        f"{100 * float(issues.wrong[row]):.0f}\N{NO-BREAK SPACE}%",
        printable(issues.file_of(row).removeprefix(folder)) or f"sample {int(issues.data.train.index[row])}",
    )
