"""Data sets of the Hugging Face hub, or local folders, through the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.assemble import Reading, assemble
from tutelage.data.data import Data
from tutelage.errors import TutelageError, one_line

# names of splits on the hub for each split
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


def load(
    repo: str,
    image_size: int | None = None,
    *,
    skip_bad: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """Load the splits of a data set with a column of images and a column of class labels.

    Without labelled test images the validation split becomes the test split; the record and a warning say so. If there
    are several label columns, the one named ``label`` is used, or the one with the most classes; the record names it.

    Args:
        repo: its name on the hub (``"owner/name"``), or a local folder that ``datasets.load_dataset`` reads.
        image_size: side in pixels to scale and cut every image to; ``None`` if they have one size already.
        skip_bad: leave out images that cannot be decoded, and count them in a warning and the record.
        reading: how images are read during training: in memory if their pixels fit, or batch by batch.

    Raises:
        TutelageError: the extra is missing, the data set cannot be fetched, or it lacks a column or a split.
    """
    try:
        import datasets
    except ImportError as error:
        raise TutelageError("hf: needs the extra: pip install 'tutelage[hf]'") from error
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(repo)
    except Exception as error:  # errors of the library, network, disk and parsers have no common class
        raise TutelageError(
            f"hf:{repo} cannot be loaded ({one_line(error)}); check the name and the connection"
        ) from error
    names = {split: next((alias for alias in aliases if alias in splits), None) for split, aliases in SPLITS.items()}
    if names["train"] is None:
        raise TutelageError(f"hf:{repo} has no split train; it has {', '.join(splits)}")
    features: Mapping[str, Any] = splits["train"].features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not images or not labels:
        lacks = (
            "class labels (ClassLabel, one per row: no numbers to regress on, no lists)" if images else "images (Image)"
        )
        raise TutelageError(
            f"hf:{repo} has no column of {lacks}; cast one of its columns to that: {', '.join(features)}"
        )
    image, label = images[0], max(labels, key=lambda name: (name == "label", features[name].num_classes))
    labelled = {
        split: (
            _Column(splits[name].cast_column(image, datasets.Image(decode=False)), image, f"{repo} {name}"),
            numbers,
        )
        for split, name in names.items()
        if name is not None and ((numbers := _labels(splits[name][label])) >= 0).any()
    }
    for split in ("train", "test"):
        if split not in labelled and "validation" not in labelled:
            raise TutelageError(f"hf:{repo} has no labelled split {split}; its splits are {', '.join(splits)}")
    return assemble(
        f"hf:{repo}",
        tuple(features[label].names),
        labelled,
        image_size=image_size,
        record={"source": "hf", "image_column": image, "label_column": label},
        skip_bad=skip_bad,
        reading=reading,
    )


@dataclass(frozen=True)
class _Column:
    """The encoded images of one split."""

    rows: Any
    column: str
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Path | bytes:
        cell = self.rows[index][self.column] or {}
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and path is None:
            raise ValueError("the row has no image")
        return content if content is not None else Path(str(path))

    def name(self, index: int) -> str:
        return f"{index} of hf:{self.where}"

    def fingerprint(self, index: int) -> str | None:
        """The library's fingerprint of the table, and the row."""
        fingerprint = getattr(self.rows, "_fingerprint", None)
        return fingerprint and f"{fingerprint} {index}"


def _labels(column: Any) -> Tensor:
    """Labels, (N,) int64; -1 for a row without a label, as in the hub's hidden test labels."""
    return torch.tensor([-1 if label is None else label for label in column], dtype=torch.int64)
