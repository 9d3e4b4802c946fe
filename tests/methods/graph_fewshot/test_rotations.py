"""Rotations and heads of the method graph_fewshot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.graph_fewshot.images import NOTHING, batch_of, features
from tutelage.methods.graph_fewshot.heads import BaseClasses, Rotation
from tutelage.methods.graph_fewshot.views import Rotated


def test_every_image_has_four_rotations() -> None:
    images = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    rotated_batch = Rotated()(batch_of(images, torch.tensor([4, -1, 6])), NOTHING, None)
    assert rotated_batch.inputs.shape == (12, 2, 5, 5)
    for turns in range(4):
        for sample in range(3):
            expected = np.rot90(images[sample].numpy(), turns, axes=(1, 2))
            np.testing.assert_array_equal(rotated_batch.inputs[3 * turns + sample].numpy(), expected)
    assert rotated_batch.targets.tolist() == [4, -1, 6] * 4
    assert rotated_batch.index.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(("share", "samples"), [(1.0, 8), (0.25, 2), (0.01, 1)])
def test_a_share_of_the_batch_is_rotated(share: float, samples: int) -> None:
    images = torch.rand(8, 1, 3, 3)
    rotated_batch = Rotated(share)(replace(batch_of(images, torch.arange(8)), weight=torch.arange(8.0)), NOTHING, None)
    assert len(rotated_batch) == 4 * samples
    assert torch.equal(rotated_batch.inputs[:samples], images[:samples])
    assert rotated_batch.weight is not None
    assert rotated_batch.weight.tolist() == [*range(samples)] * 4


def test_rotations_are_classified_in_their_order() -> None:
    term, student = Rotation(), features(8)
    term.build(student, None)
    assert term.head is not None
    with torch.no_grad():
        term.head.weight.zero_()
        term.head.bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    expected = -torch.tensor([3.0, 2.0, 1.0, 0.0]).log_softmax(0)
    torch.testing.assert_close(term(student, None, None).detach(), expected.repeat_interleave(2))


def test_a_head_without_weights_is_at_the_logarithm_of_the_classes() -> None:
    term, student = BaseClasses(torch.tensor([1, 4, 5]), 7), features(4)
    term.build(student, None)
    assert term.head is not None
    nn.init.zeros_(term.head.weight)
    nn.init.zeros_(term.head.bias)
    batch = batch_of(torch.zeros(4, 1), torch.tensor([1, 5, -1, 2]))  # class 2 is not trained on
    assert term(student, None, batch).tolist() == pytest.approx([float(np.log(3))] * 2 + [0.0, 0.0])


def test_classes_are_numbered_among_base_classes() -> None:
    term, student = BaseClasses(torch.tensor([1, 4, 5]), 7), features(6)
    term.build(student, None)
    assert term.head is not None
    targets = torch.tensor([4, 1, 5, 5, 1, 4])
    values = term(student, None, batch_of(torch.zeros(6, 1), targets))
    logits = (student["embedding"].double() @ term.head.weight.double().T + term.head.bias.double()).detach()
    expected = [-float(logits[i].log_softmax(0)[{1: 0, 4: 1, 5: 2}[int(t)]]) for i, t in enumerate(targets)]
    assert values.tolist() == pytest.approx(expected, rel=1e-5)
    soft = F.one_hot(targets, 7).float()
    torch.testing.assert_close(term(student, None, batch_of(torch.zeros(6, 1), soft)), values)
    values.mean().backward()
    assert student["embedding"].grad is not None
    assert student["embedding"].grad.abs().sum() > 0


def test_existing_head_is_not_recreated() -> None:
    term = Rotation()
    term.build(features(4), None)
    before = term.head
    term.build(features(4, seed=1), None)
    assert term.head is before
