"""Modalities and targets: storage, statistics and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import Data
from tutelage.data.modality import Modality, Pixels, Tokens, Vectors, Waveforms
from tutelage.data.targets import Classes, MultiLabel, Quantities, Strings, Targets

NAN = float("nan")


def test_vectors_are_float32_with_statistics_per_feature() -> None:
    inputs = np.array([[1, 10], [3, 30], [1, 10], [3, 30]])
    pair = (inputs, np.array([0, 1, 0, 1]))
    data = Data.from_arrays(pair, pair, modality=Vectors())
    assert isinstance(data.train.inputs, torch.Tensor)
    assert data.train.inputs.dtype == torch.float32
    assert data.mean_std == ((2.0, 20.0), (1.0, 10.0))
    assert data.input_shape == (2,)
    assert "4 train" in repr(data)


def test_waves_are_scaled_and_have_one_channel() -> None:
    waves = Waveforms(8000)
    stored_waves = waves.store(np.array([[0, 16384], [-32768, 32767]]), "x")
    assert stored_waves.dtype == torch.int16
    ready = waves.to_input(waves.arrange(stored_waves))
    assert ready.shape == (2, 1, 2)
    assert ready[:, 0].tolist() == [[0.0, 0.5], [-1.0, 32767 / 32768]]
    assert waves.input_shape((2,)) == (1, 2)
    assert waves.model_arguments((1, 2))["rate"] == 8000


def test_tokens_are_int64_and_their_example_is_not_padding() -> None:
    tokens = Tokens(5)
    assert tokens.store(np.array([[0, 4]], np.uint8), "x").dtype == torch.int64
    assert tokens.example(2, (3,)).tolist() == [[1, 1, 1]] * 2
    assert tokens.mean_std(iter(())) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("modality", "inputs", "pieces"),
    [
        (Vectors(), np.zeros(3), ("float64 of shape (3,)", "(N, D)")),
        (Vectors(), np.zeros((2, 0)), ("(2, 0)", "(N, D)")),
        (Vectors(), np.array([[1.0, NAN]]), ("finite",)),
        (Vectors(), np.array([["a"]]), ("(N, D)",)),
        (Tokens(5), np.array([[0, 5]]), ("5", "from 0 to 4")),
        (Tokens(5), np.array([[0, -1]]), ("-1", "from 0 to 4")),
        (Tokens(5), np.array([[0.0, 1.0]]), ("float64", "integers")),
        (Tokens(5), np.array(np.array([0, 1])), ("(2,)", "(N, L)")),
        (Waveforms(8000), np.array([[40000]]), ("40000", "32767")),
        (Waveforms(8000), np.array([[0.5]]), ("float64", "integers")),
        (Pixels(), np.zeros((2, 3)), ("(2, 3)", "(N, H, W)")),
    ],
)
def test_invalid_inputs_are_refused(modality: Modality, inputs: Any, pieces: tuple[str, ...], refused: Any) -> None:
    with refused("my inputs", *pieces):
        modality.store(inputs, "my inputs")


@pytest.mark.parametrize(
    ("targets", "labels", "pieces"),
    [
        (MultiLabel(), np.array([[0, 2]]), ("2", "0, 1, or -1")),
        (MultiLabel(), np.array(np.array([0, 1])), ("(2,)", "(N, C)")),
        (MultiLabel(), np.array([[0.5]]), ("0.5", "0, 1, or -1")),
        (Quantities(), np.zeros((2, 1, 1)), ("(2, 1, 1)", "(N, K)")),
        (Quantities(), np.array([[np.inf]]), ("inf", "NaN where they are unknown")),
        (Strings(), np.array([[0.0]]), ("float64", "(N, L)")),
        (Strings(), np.array([[-2]]), ("-2", "from -1")),
        (Classes(), np.array([0.5]), ("float64",)),
    ],
)
def test_invalid_labels_are_refused(targets: Targets, labels: Any, pieces: tuple[str, ...], refused: Any) -> None:
    with refused("my labels", *pieces):
        targets.store(labels, "my labels")


@pytest.mark.parametrize(
    ("targets", "labels", "names", "pieces"),
    [
        (MultiLabel(), torch.zeros(2, 3), ("a", "b"), ("3 columns", "2 labels")),
        (Quantities(), torch.zeros(2, 1), ("a", "b"), ("1 columns", "2 quantities")),
        (Strings(), torch.tensor([[0, 2]]), ("a", "b"), ("symbol number 2", "2 symbols")),
    ],
)
def test_labels_must_match_the_class_names(
    targets: Targets, labels: torch.Tensor, names: tuple[str, ...], pieces: tuple[str, ...], refused: Any
) -> None:
    with refused("part of mine", *pieces):
        targets.check(labels, "part of mine", names)


def test_labelled_samples_and_counts_per_class() -> None:
    multi_labels = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [1.0, -1.0]])
    assert MultiLabel().labelled(multi_labels).tolist() == [True, False, True]
    assert MultiLabel().counts(multi_labels, "ab") == [2, 0]
    numbers = torch.tensor([[NAN, NAN], [1.0, NAN]])
    assert Quantities().labelled(numbers).tolist() == [False, True]
    assert Quantities().counts(numbers, "ab") == [1, 0]
    strings = torch.tensor([[0, 0], [-1, 1], [-1, -1]])
    assert Strings().labelled(strings).tolist() == [True, True, False]
    assert Strings().counts(strings, "abc") == [2, 1, 0]
    assert Strings().num_classes(strings) == 2


def test_splits_of_different_modalities_are_refused(refused: Any) -> None:
    inputs = np.array([[0, 1], [1, 0]])
    texts = Data.from_arrays((inputs, np.array([0, 1])), (inputs, np.array([0, 1])), modality=Tokens(3)).test
    token_split = Data.from_arrays((inputs, np.array([0, 1])), (inputs, np.array([0, 1])), modality=Tokens(4)).train
    with refused("different kinds"):
        Data("mixed", ("a", "b"), token_split, texts)


def test_other_modalities_are_not_accepted_as_images(refused: Any) -> None:
    inputs = np.array([[0, 1], [1, 0]])
    with refused("texts", "needs images"):
        _ = Data.from_arrays((inputs, np.array([0, 1])), (inputs, np.array([0, 1])), modality=Tokens(3)).image_shape
