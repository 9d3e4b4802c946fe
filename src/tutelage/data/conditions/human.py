"""Labels by human annotators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.conditions.condition import Labels, Relabelling
from tutelage.data.conditions.files import read_columns
from tutelage.data.data import Data
from tutelage.errors import TutelageError, unknown

CLEAN = "clean"


@dataclass(frozen=True)
class HumanLabels(Relabelling):
    """Replace the training labels with those of a file.

    For example CIFAR-10N (Wei et al. 2022, arXiv 2110.12088): ``HumanLabels("cifar10n-human-labels.npz", "worst")``.

    The file is an ``.npz`` with an array for each column (never unpickled) or a ``.csv`` with a line of column names.
    Row i is the label of the sample whose ``index`` is i: its position in the original training split, or its number
    in the published set if an ``npz:`` data set has an array ``train_index``. A sample therefore gets the same label
    before and after a subset is selected. The length of the file can be checked against the whole split only: apply
    human labels first, or add a column ``clean`` to the file, which must then equal the clean labels of all samples.
    A label of -1 means no label.

    Attributes:
        file: the file of labels.
        column: the name of the column to use.
    """

    file: str | Path
    column: str

    def _relabel(self, data: Data, before: Labels) -> Labels:
        columns = read_columns(self.file, (self.column, CLEAN))
        if self.column not in columns.selected:
            raise unknown("column", self.column, columns.names, f"These are the columns of {self.file}.")
        labels = columns.selected[self.column]
        index = data.train.index.cpu().numpy()
        self._check_length(data, len(labels), index, checked=CLEAN in columns.selected)
        after: Labels = labels[index]
        if (bad := (after < -1) | (after >= data.num_classes)).any():
            row = int(index[bad.argmax()])
            raise TutelageError(
                f"{self.column} of {self.file} is {labels[row]} in row {row} ({int(bad.sum())} such values); labels of "
                f"{data.name} are 0 to {data.num_classes - 1}, or -1 for none"
            )
        if CLEAN in columns.selected:
            self._check_clean(data, columns.selected[CLEAN], index)
        return after

    def _check_length(self, data: Data, rows: int, index: Labels, *, checked: bool) -> None:
        """Refuse a file without a row for each sample, or one whose rows cannot be checked against the data."""
        whole = np.array_equal(np.sort(index), np.arange(len(index)))
        if rows != len(index) if whole else rows <= index.max():
            least = len(index) if whole else f"at least {int(index.max()) + 1}"
            raise TutelageError(
                f"{self.file} has {rows} rows, and {data.name} needs {least}: "
                "one for each sample of the original training split, in that order"
            )
        if not whole and not checked:
            raise TutelageError(
                f"the training split of {data.name} is a subset of {len(index)} samples, and {self.file} has no column "
                "'clean' to check the rows with; apply HumanLabels before the subset is selected, or add the column"
            )

    def _check_clean(self, data: Data, clean: Labels, index: Labels) -> None:
        """Refuse a file whose clean labels differ from those of the data: its rows belong to other samples."""
        expected = data.train.clean_labels.cpu().numpy()
        if (other := (clean[index] != expected) & (expected >= 0)).any():
            position = int(other.argmax())
            raise TutelageError(
                f"the column 'clean' of {self.file} is {clean[index[position]]} in row {index[position]}, where "
                f"{data.name} has {expected[position]} ({int(other.sum())} of {len(expected)} differ); use the file "
                "made for this data set, with its rows in the order of the training split"
            )

    def _settings(self) -> dict[str, Any]:
        return {"file": str(self.file), "column": self.column}
