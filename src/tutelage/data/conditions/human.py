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
    """The training labels of a file in place of those that came with the data.

    As in CIFAR-10N (Wei et al. 2022, arXiv 2110.12088): ``HumanLabels("cifar10n-human-labels.npz", "worst")``.

    The file is an ``.npz`` with an array for each column (never unpickled) or a ``.csv`` with a line of column names.
    Row i is for the sample whose ``index`` is i: its place in the training split it was loaded from, or its number in
    the published set where an ``npz:`` data set has an array ``train_index``. So the labels are the same before and
    after samples were chosen, but only the whole split tells whether the file is as long as it should be: apply human
    labels first, or give the file a column ``clean``, which must then equal the clean labels sample by sample.
    A label of -1 is an absent one.

    Attributes:
        file: the file of labels.
        column: which of its columns.
    """

    file: str | Path
    column: str

    def _relabel(self, data: Data, before: Labels) -> Labels:
        columns = read_columns(self.file, (self.column, CLEAN))
        if self.column not in columns.found:
            raise unknown("column", self.column, columns.names, f"They are those of {self.file}.")
        labels = columns.found[self.column]
        index = data.train.index.cpu().numpy()
        self._check_length(data, len(labels), index, checked=CLEAN in columns.found)
        after: Labels = labels[index]
        if (bad := (after < -1) | (after >= data.num_classes)).any():
            row = int(index[bad.argmax()])
            raise TutelageError(
                f"{self.column} of {self.file} is {labels[row]} in row {row} ({int(bad.sum())} like it); labels of "
                f"{data.name} are 0 to {data.num_classes - 1}, or -1 for none"
            )
        if CLEAN in columns.found:
            self._check_clean(data, columns.found[CLEAN], index)
        return after

    def _check_length(self, data: Data, rows: int, index: Labels, *, checked: bool) -> None:
        """Refuse a file that cannot have a row for each sample, or that nothing shows to be of this data."""
        whole = np.array_equal(np.sort(index), np.arange(len(index)))
        if rows != len(index) if whole else rows <= index.max():
            least = len(index) if whole else f"at least {int(index.max()) + 1}"
            raise TutelageError(
                f"{self.file} has {rows} rows, and {data.name} needs {least}: "
                "one for each sample of the training split as it was loaded, in that order"
            )
        if not whole and not checked:
            raise TutelageError(
                f"the training split of {data.name} is {len(index)} samples of a larger one, and {self.file} has no "
                "column 'clean' to check the rows by; apply HumanLabels before samples are chosen, or add the column"
            )

    def _check_clean(self, data: Data, clean: Labels, index: Labels) -> None:
        """Refuse a file whose clean labels are not those of the data: its rows are of other samples."""
        known = data.train.clean_labels.cpu().numpy()
        if (other := (clean[index] != known) & (known >= 0)).any():
            place = int(other.argmax())
            raise TutelageError(
                f"the column 'clean' of {self.file} is {clean[index[place]]} in row {index[place]}, where {data.name} "
                f"has {known[place]} ({int(other.sum())} of {len(known)} differ); use the file of this very data set, "
                "its rows in the order of the training split"
            )

    def _settings(self) -> dict[str, Any]:
        return {"file": str(self.file), "column": self.column}
