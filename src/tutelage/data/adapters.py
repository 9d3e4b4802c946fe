"""Data sets from Python objects: pairs of arrays, and PyTorch datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from tutelage.data.arrays import channels_first
from tutelage.data.data import ArrayLike, Data
from tutelage.errors import TutelageError, one_line
from tutelage.text import value_text

ACCEPTED = (
    "give a name such as digits or folder:PATH, a Data, a pair (images, labels), a map-style dataset of such pairs, a "
    "DataLoader of one, or a tuple (training set, test set) of those"
)
SAMPLES_READ_TWICE = 8  # samples read twice, to detect random transforms


def as_data(value: object, test_share: float | None = None) -> Data:
    """A data set from all samples of an object.

    Args:
        value: ``(images, labels)``, a map-style dataset whose items are those, a ``DataLoader`` of one, whose dataset
            is read, or ``(training set, test set)``. Items may be PIL images, (H, W) or (H, W, C) arrays, and (C, H, W)
            tensors, as torchvision has them.
        test_share: the share that becomes the test split where there is none.

    Raises:
        TutelageError: it is another object; the message says what to pass.
    """
    if isinstance(value, tuple | list) and len(value) == 2 and all(_is_set(item) for item in value):
        train, test = value
        return Data.from_arrays(_arrays(train), _arrays(test), classes=_classes(train), test_share=test_share)
    return Data.from_arrays(_arrays(value), classes=_classes(value), test_share=test_share)


def _is_set(value: object) -> bool:
    """Whether the value is a set of samples, rather than an array of a pair (images, labels)."""
    if isinstance(value, tuple | list):
        return len(value) == 2 and not any(isinstance(item, int) for item in value)
    if isinstance(value, Tensor | np.ndarray | str | bytes | Mapping):
        return False
    return isinstance(value, Dataset | DataLoader) or (isinstance(value, Sized) and hasattr(value, "__getitem__"))


def _classes(value: object) -> Sequence[str] | None:
    """The class names of a dataset (``classes``, as in torchvision) or of the dataset that it wraps."""
    names = None
    while value is not None and names is None:
        names, value = getattr(value, "classes", None), getattr(value, "dataset", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def _arrays(value: Any) -> tuple[ArrayLike, ArrayLike | None]:
    """The images and the labels of a set; ``None`` for missing labels."""
    if isinstance(value, DataLoader):
        return _arrays(_dataset_of(value))
    if isinstance(value, IterableDataset):
        raise TutelageError(
            f"{type(value).__name__} is an iterable dataset, whose samples have no numbers; give a map-style dataset "
            "or a pair (images, labels)"
        )
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        images, labels = value.tensors
        return (images.permute(0, 2, 3, 1) if channels_first(images.shape[1:]) else images), labels
    if isinstance(value, tuple | list) and len(value) == 2:
        inputs, labels = value
        if isinstance(inputs, Tensor | np.ndarray) and isinstance(labels, Tensor | np.ndarray | None):
            return inputs, labels
    if (
        isinstance(value, str | bytes | dict | tuple)
        or not isinstance(value, Sized)
        or not hasattr(value, "__getitem__")
    ):
        raise TutelageError(f"{_named(value)} is no data set; {ACCEPTED}")
    return _items(value)


def _dataset_of(loader: DataLoader[Any]) -> Any:
    """The dataset of a loader; batches, their order and augmentation are tutelage's own.

    Raises:
        TutelageError: the loader does more than put samples of its dataset into batches.
    """
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    own = [] if isinstance(loader.sampler, SequentialSampler | RandomSampler) else [type(loader.sampler).__name__]
    if getattr(loader.sampler, "replacement", False) or getattr(loader.sampler, "_num_samples", None) is not None:
        own = ["a sampler that draws other samples"]
    if loader.collate_fn is not default_collate:
        own.append("a collate_fn")
    if own:
        raise TutelageError(
            f"the DataLoader has {' and '.join(own)} of its own, which would be left out; give its dataset "
            "(loader.dataset), or a pair (images, labels)"
        )
    return loader.dataset


def _items(value: Any) -> tuple[ArrayLike, ArrayLike]:
    """All items of a map-style dataset."""
    what = type(value).__name__
    if len(value) == 0:
        raise TutelageError(f"{what} has no sample; {ACCEPTED}")
    images, labels = [], []
    for number in range(len(value)):
        image, label = _item(value, number, what)
        if number < SAMPLES_READ_TWICE and not np.array_equal(image, _item(value, number, what)[0], equal_nan=True):
            raise TutelageError(
                f"{what} gives another image each time that item {number} is read; give it without random "
                "transforms, since tutelage augments by itself (augment, views)"
            )
        images.append(image)
        labels.append(label)
    shapes = Counter(image.shape for image in images)
    if len(shapes) > 1:
        raise TutelageError(
            f"the images of {what} have {len(shapes)} shapes, {value_text(list(shapes)[:3])}; resize them"
        )
    try:
        stacked = np.array(labels)
    except ValueError as error:
        raise TutelageError(f"the labels of {what} have different shapes; give one class number per sample") from error
    return np.stack(images), stacked


def _item(value: Any, number: int, what: str) -> tuple[NDArray[Any], Any]:
    """One image, (H, W) or (H, W, C), and its label."""
    try:
        item = value[number]
    except Exception as error:  # of the user's code
        raise TutelageError(f"item {number} of {what} cannot be read: {one_line(error)}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TutelageError(f"item {number} of {what} is {_named(item)}; items are pairs (image, label)")
    image, label = item
    try:
        pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        label = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TutelageError(f"item {number} of {what} is no image with a label: {one_line(error)}") from error
    return (pixels.transpose(1, 2, 0) if channels_first(pixels.shape) else pixels), label


def _named(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value_text(value)}"
