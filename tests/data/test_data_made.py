"""Data sets constructed in Python get the same checks as those read from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import Data, Split
from tutelage.tasks.classification import task as classification

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (12, 8, 8, 3), generator=GENERATOR, dtype=torch.uint8)
LABELS = torch.arange(12) % 3
ONE_HOT = torch.eye(3)[LABELS]


def make_data(images: Any = IMAGES, labels: Any = LABELS, classes: Any = ("a", "b", "c"), **fields: Any) -> Data:
    train = replace(Split(images, labels, torch.arange(12), LABELS), **fields)
    return Data("made", classes, train, Split.of(IMAGES, LABELS))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_labels_of_other_integer_types_become_int64(dtype):
    data = make_data(labels=LABELS.to(dtype))
    assert data.train.labels.dtype == torch.int64
    assert torch.equal(data.train.labels, LABELS)
    column = Split.of(IMAGES, LABELS.to(dtype)[:, None])
    assert torch.equal(column.labels, LABELS)
    assert torch.equal(column.clean_labels, LABELS)


def test_numpy_arrays_become_tensors():
    backwards = IMAGES.numpy()[::-1, :, ::-1]
    data = make_data(backwards, LABELS.numpy(), index=np.arange(12, dtype=np.int32), trusted=np.ones(12, bool))
    assert data.train.in_memory
    assert torch.equal(data.train.inputs, IMAGES.flip(0, 2))
    assert (data.train.index.dtype, data.train.trusted.dtype) == (torch.int64, torch.bool)
    read_only = IMAGES.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(make_data(read_only).train.inputs, IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_float_images_become_bytes_and_this_is_recorded(dtype):
    data = make_data((IMAGES.double() / 255).to(dtype))
    assert torch.equal(data.train.inputs, IMAGES)
    assert data.record == ({"rounded_to_uint8": ["train"]},)
    assert replace(data, name="again").record == data.record


def test_valid_splits_are_used_unchanged():
    split = Split.of(IMAGES, LABELS)
    data = Data("made", ("a", "b", "c"), split, split)
    assert data.train is split
    part = Split.of(torch.zeros(12, 8, 8, dtype=torch.uint8), LABELS)
    grey = Data("grey", ["a", "b", "c"], part, part)
    assert grey.image_shape == (1, 8, 8)
    assert grey.classes == ("a", "b", "c")
    assert make_data(IMAGES.permute(0, 2, 1, 3)).train.inputs.is_contiguous()


def test_small_images_are_not_mistaken_for_channels_first():
    for shape in ((12, 3, 3, 3), (12, 4, 4, 1), (12, 1, 9, 1), (12, 3, 5, 3), (12, 4, 4, 4), (12, 3, 3)):
        part = Split.of(torch.zeros(shape, dtype=torch.uint8), LABELS)
        assert Data("small", ("a", "b", "c"), part, part).train.inputs.shape[:3] == shape[:3]


def labels_with(value: float) -> torch.Tensor:
    labels = ONE_HOT.clone()
    labels[5, 1] = value
    return labels


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (
            lambda: make_data(IMAGES.permute(0, 3, 1, 2)),
            ("(12, 3, 8, 8)", "channels first", "NHWC", ".permute(0, 2, 3, 1)"),
        ),
        (lambda: make_data(IMAGES[..., :1].permute(0, 3, 1, 2)), ("(12, 1, 8, 8)", "channels first", "NHWC")),
        (lambda: make_data(torch.zeros(12, 4, 8, 8, dtype=torch.uint8)), ("(12, 4, 8, 8)", "channels first")),
        (lambda: make_data(torch.zeros(12, 5, 8, 8, dtype=torch.uint8)), ("(12, 5, 8, 8)", "8 channels", "NHWC")),
        (lambda: make_data(torch.zeros(12, 8, dtype=torch.uint8)), ("(12, 8)", "(N, H, W, C)")),
        (lambda: make_data(torch.zeros((), dtype=torch.uint8)), ("()", "(N, H, W, C)")),
        (lambda: make_data(IMAGES.float()), ("divide by 255",)),
        (lambda: make_data(torch.full((12, 8, 8, 3), torch.nan)), ("nan at [0, 0, 0, 0]", "[0, 1]")),
        (lambda: make_data(IMAGES.long()), ("train split of made", "int64", "uint8")),
        (lambda: make_data(IMAGES.bool()), ("bool", "uint8")),
        (lambda: make_data(IMAGES.to_sparse()), ("sparse", "dense")),
        (lambda: make_data(IMAGES.to("meta")), ("meta", "dense")),
        (lambda: make_data([1, 2]), ("list", "tensor or a NumPy array")),
        (lambda: make_data(IMAGES[:5]), ("train split of made", "(5, 8, 8, 3)", "(12,)")),
        (lambda: make_data(labels=LABELS.float()), ("float32", "(12,)", "regression", "integers")),
        (lambda: make_data(labels=LABELS.float()[:, None]), ("(12, 1)", "regression", "one class per sample")),
        (lambda: Split.of(IMAGES, LABELS.float()[:, None]), ("(12, 1)", "regression")),
        (lambda: make_data(labels=(ONE_HOT + ONE_HOT.roll(1, 1))), ("12 rows", "multi-label", "one class per sample")),
        (lambda: make_data(labels=(ONE_HOT + ONE_HOT.roll(1, 1)).int()), ("multi-label", "one class per sample")),
        (lambda: make_data(labels=ONE_HOT.long()), ("one-hot", ".argmax(1)")),
        (lambda: make_data(labels=ONE_HOT.bool()), ("one-hot", ".argmax(1)")),
        (lambda: make_data(labels=labels_with(torch.nan)), ("nan at [5, 1]", "probabilities")),
        (lambda: make_data(labels=labels_with(0.5)), ("1.5", "[5]", "sums to 1")),
        (lambda: make_data(labels=labels_with(-1.0)), ("-1.0 at [5, 1]", "0 or more")),
        (lambda: make_data(labels=LABELS - 2), ("-2 at [0]", "-1 for no label")),
        (lambda: make_data(labels=LABELS + 1), ("from 1 to 3", "they start at 1", "subtract 1")),
        (lambda: make_data(labels=LABELS + 7), ("from 7 to 9", "3 classes")),
        (lambda: make_data(labels=LABELS.view(12, 1, 1)), ("(12, 1, 1)", "integers")),
        (lambda: make_data(labels=torch.tensor(1)), ("of shape ()", "integers")),
        (lambda: make_data(labels=ONE_HOT[:, :2] + ONE_HOT[:, 2:] / 2), ("2 columns", "3 classes")),
        (lambda: make_data(index=torch.arange(11)), ("index of the train split", "(11,)", "(12,) integers")),
        (lambda: make_data(index=torch.arange(12) - 1), ("-1 at [0]", "0 or more")),
        (lambda: make_data(index=torch.arange(12.0)), ("index", "float32")),
        (lambda: make_data(clean_labels=LABELS[:3]), ("clean labels", "(3,)", "(12,) integers")),
        (lambda: make_data(clean_labels=LABELS + 1), ("clean labels", "3 at [2]", "0 to 2")),
        (lambda: make_data(clean_labels=ONE_HOT), ("clean labels", "(12, 3)")),
        (lambda: make_data(trusted=torch.ones(12)), ("trusted", "float32", "booleans")),
        (lambda: make_data(trusted=torch.ones(5, dtype=torch.bool)), ("trusted", "(5,)", "(12,) booleans")),
        (lambda: Data("made", ("a", "b"), (IMAGES, LABELS), (IMAGES, LABELS)), ("tuple", "Split.of", "from_arrays")),
        (lambda: Data("made", ("a", "b", "c"), Split.of(IMAGES, LABELS), None), ("test split", "NoneType")),
    ],
)
def test_invalid_splits_are_refused(refused, make: Callable[[], Any], pieces: tuple[str, ...]):
    with refused(*pieces):
        make()


@pytest.mark.parametrize(
    ("classes", "pieces"),
    [
        (("crane", "dog", "crane"), ("classes 0, 2", "'crane'", "its own name")),
        (("a", "a", "a"), ("classes 0, 1, 2", "'a'")),
        ((1, "1", "2"), ("classes 0, 1", "'1'")),
    ],
)
def test_duplicate_class_names_are_refused(refused, classes, pieces):
    with refused("made", *pieces):
        make_data(classes=classes)


def test_training_with_a_single_class_is_refused(refused):
    part = Split.of(IMAGES, torch.zeros(12, dtype=torch.int64))
    with refused("alone has 1 class", "2 classes or more"):
        classification.check_labels(Data("alone", ("a",), part, part))


def test_error_names_labels_that_start_at_1(refused):
    part = Split.of(IMAGES, LABELS + 1)
    with refused("'0'", "start at 1", "subtract 1"):
        classification.check_labels(Data("shifted", tuple("0123"), part, part))


def test_repr_of_data_and_splits_is_one_short_line():
    data = make_data()
    assert repr(data) == "Data('made', 3 classes, 12 train, 12 test, images (3, 8, 8))"
    assert repr(data.train) == "Split(12 samples, images (12, 8, 8, 3), classes (12,))"
