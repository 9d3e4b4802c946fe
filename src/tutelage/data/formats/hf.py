"""Data sets of the Hugging Face hub, or local folders, through the ``datasets`` library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.assemble import Reading, assemble
from tutelage.data.data import Data
from tutelage.data.formats.text import TEXT_COLUMNS, text_data
from tutelage.data.tokenizer import TOKENIZER, open_tokenizer
from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.files import as_path

TEXT_TYPES = ("string", "large_string")
# names of splits on the hub for each split
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


def load(
    repo: str,
    image_size: int | None = None,
    *,
    skip_bad: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """Load the splits of a data set with a column of images or texts and a column of class labels.

    Without labelled test samples the validation split becomes the test split; the record and a warning say so. If there
    are several label columns, the one named ``label`` is used, or the one with the most classes; the record names it.
    Without images, texts are read: the column named ``text`` or ``sentence``, or the only one of texts.

    Args:
        repo: its name on the hub (``"owner/name"``), or a local folder that ``datasets.load_dataset`` reads. For texts,
            ``@`` and a tokenizer may follow (``"owner/name@owner/network"``): a file, a folder, or a name of the hub.
            By default it is the ``tokenizer.json`` in the folder.
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
    source, tokenizer = _parts(repo)
    try:
        saved = (as_path(source) / "dataset_dict.json").is_file()  # by ``save_to_disk``
        splits: Mapping[str, Any] = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # errors of the library, network, disk and parsers have no common class
        raise TutelageError(
            f"hf:{repo} cannot be loaded ({one_line(error)}); check the name and the connection"
        ) from error
    names = {split: next((alias for alias in aliases if alias in splits), None) for split, aliases in SPLITS.items()}
    if names["train"] is None:
        raise TutelageError(f"hf:{repo} has no split train; it has {', '.join(splits)}")
    features: Mapping[str, Any] = splits["train"].features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    texts = [name for name, feature in features.items() if getattr(feature, "dtype", "") in TEXT_TYPES]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not (images or texts) or not labels:
        lacks = (
            "class labels (ClassLabel, one per row: no numbers to regress on, no lists)"
            if images or texts
            else "images (Image) or texts (string)"
        )
        raise TutelageError(
            f"hf:{repo} has no column of {lacks}; cast one of its columns to that: {', '.join(features)}"
        )
    label = max(labels, key=lambda name: (name == "label", features[name].num_classes))
    rows = {
        split: (splits[name], numbers)
        for split, name in names.items()
        if name is not None and ((numbers := _labels(splits[name][label])) >= 0).any()
    }
    for split in ("train", "test"):
        if split not in rows and "validation" not in rows:
            raise TutelageError(f"hf:{repo} has no labelled split {split}; its splits are {', '.join(splits)}")
    classes, record = tuple(features[label].names), {"source": "hf", "label_column": label}
    if not images:
        if image_size is not None or skip_bad or reading != Reading():
            raise TutelageError(f"hf:{repo} has texts and no images; leave out image_size, skip_bad and the like")
        return _texts(repo, classes, rows, _text_column(repo, texts), _tokenizer_of(repo, source, tokenizer), record)
    image = images[0]
    encoded = {
        split: (
            _Column(part.cast_column(image, datasets.Image(decode=False)), image, f"{repo} {names[split]}"),
            numbers,
        )
        for split, (part, numbers) in rows.items()
    }
    return assemble(
        f"hf:{repo}",
        classes,
        encoded,
        image_size=image_size,
        record={"source": "hf", "image_column": image, "label_column": label},
        skip_bad=skip_bad,
        reading=reading,
    )


def _parts(repo: str) -> tuple[str, str]:
    """The data set and the tokenizer of ``REPO@TOKENIZER``; a folder may have an ``@`` in its name."""
    if as_path(repo).exists():
        return repo, ""
    source, _, tokenizer = repo.partition("@")
    return source, tokenizer


def _text_column(repo: str, texts: Sequence[str]) -> str:
    """The column of texts.

    Raises:
        TutelageError: there are several and none has a usual name.
    """
    column = next((name for name in TEXT_COLUMNS if name in texts), texts[0] if len(texts) == 1 else None)
    if column is None:
        raise TutelageError(
            f"hf:{repo} has several columns of texts ({', '.join(texts)}) and networks here read one; join or rename "
            f"them to {TEXT_COLUMNS[0]}"
        )
    return column


def _tokenizer_of(repo: str, source: str, name: str) -> Any:
    """The tokenizer that the name gives, or that is in the folder of the data set.

    Raises:
        TutelageError: there is none.
    """
    if not name and not (as_path(source) / TOKENIZER).is_file():
        raise TutelageError(
            f"hf:{repo} has texts, which need a tokenizer: put {TOKENIZER} into its folder, or name that of the "
            f"teacher by hf:{source}@TOKENIZER, a folder or a model of the hub"
        )
    return open_tokenizer(name or source)


def _texts(
    repo: str,
    classes: tuple[str, ...],
    rows: Mapping[str, tuple[Any, Tensor]],
    column: str,
    tokenizer: Any,
    record: Mapping[str, Any],
) -> Data:
    """The data set of a column of texts."""
    rows = dict(rows)
    test_from = "test" if "test" in rows else "validation"
    if test_from == "validation":
        rows["test"] = rows.pop("validation")
        warnings.warn(
            TutelageWarning(f"hf:{repo} has no test split, so its validation split is the test split"), stacklevel=4
        )
    return text_data(
        f"hf:{repo}",
        classes,
        {split: [text or "" for text in part[column]] for split, (part, _) in rows.items()},
        {split: numbers for split, (_, numbers) in rows.items()},
        tokenizer,
        {**record, "text_column": column, "test_from": test_from},
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
