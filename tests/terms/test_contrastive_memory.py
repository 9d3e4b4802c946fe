"""CRD's memory: its negatives, its update, its normalizing constants, and the loss written as loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms import MemoryContrast

NUMBERS = torch.tensor([7, 3, 9, 0, 5, 4])
LABELS = torch.tensor([1, 0, 1, 2, -1, 0])


def batch(*rows: int) -> Batch:
    index = NUMBERS[list(rows)]
    return Batch(torch.zeros(len(rows), 1, 2, 2), LABELS[list(rows)], index, None)


def outputs(samples: int, width: int, seed: int) -> Outputs:
    values = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))
    return Outputs(None, {"embedding": values})


def term(**options: Any) -> MemoryContrast:
    torch.manual_seed(0)
    memory = MemoryContrast(NUMBERS, LABELS, **({"negatives": 8, "width": 4} | options))
    memory.build(outputs(2, 3, 0), outputs(2, 5, 1))
    return memory


def test_negatives_are_all_samples_of_other_classes_and_equally_likely() -> None:
    contrast = term(negatives=6000)
    rows = contrast._negatives(torch.arange(6))
    for row, label in enumerate(LABELS.tolist()):
        others = [i for i in range(6) if i != row and (LABELS[i] != label or label < 0)]
        counts = torch.bincount(rows[row], minlength=6)
        assert counts.nonzero().flatten().tolist() == others
        expected = 6000 / len(others)
        assert (counts[others] - expected).abs().max() < 5 * math.sqrt(expected)


def test_loss_by_loops() -> None:
    contrast = term()
    student, teacher, rows = outputs(3, 3, 2), outputs(3, 5, 3), [0, 3, 5]
    torch.manual_seed(5)
    negatives = contrast._negatives(torch.tensor(rows))
    assert contrast.projections is not None
    s, t = (
        F.normalize(layer(values["embedding"])).detach().double()
        for layer, values in zip(contrast.projections, (student, teacher), strict=True)
    )
    memory = contrast.memory.double()
    expected = [0.0] * 3
    for own, other in ((s, memory[1]), (t, memory[0])):
        candidates = [[row, *drawn] for row, drawn in zip(rows, negatives.tolist(), strict=True)]
        scores = [[math.exp(float(own[i] @ other[k]) / 0.07) for k in line] for i, line in enumerate(candidates)]
        constant = 6 * sum(map(sum, scores)) / 27  # M times the mean
        for i, line in enumerate(scores):
            h, noise = [value / constant for value in line], 8 / 6
            expected[i] -= math.log(h[0] / (h[0] + noise + 1e-7))
            expected[i] -= sum(math.log(noise / (value + noise + 1e-7)) for value in h[1:])
    torch.manual_seed(5)
    value = contrast(student, teacher, batch(*rows))
    torch.testing.assert_close(value, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_memory_moves_half_way_to_projections_of_the_batch_alone() -> None:
    contrast = term(momentum=0.5)
    before = contrast.memory.clone()
    student, teacher = outputs(2, 3, 2), outputs(2, 5, 3)
    projected = contrast.projected(student, teacher)
    contrast(student, teacher, batch(1, 4))
    for number in range(2):
        expected = F.normalize(0.5 * before[number][[1, 4]] + 0.5 * projected[number].detach())
        torch.testing.assert_close(contrast.memory[number][[1, 4]], expected)
        assert torch.equal(contrast.memory[number][[0, 2, 3, 5]], before[number][[0, 2, 3, 5]])


@pytest.mark.parametrize("mode", ["evaluation", "no gradients"])
def test_memory_and_constants_change_in_training_steps_only(mode: str) -> None:
    contrast = term()
    before = {name: value.clone() for name, value in contrast.state_dict().items()}
    if mode == "evaluation":
        contrast.eval()(outputs(2, 3, 2), outputs(2, 5, 3), batch(1, 4))
    else:
        with torch.no_grad():
            contrast(outputs(2, 3, 2), outputs(2, 5, 3), batch(1, 4))
    assert all(torch.equal(value, before[name]) for name, value in contrast.state_dict().items())


def test_constants_are_those_of_the_first_batch() -> None:
    contrast = term()
    contrast(outputs(2, 3, 2), outputs(2, 5, 3), batch(1, 4))
    first: Tensor = contrast.constants.clone()
    assert (first > 0).all()
    contrast(outputs(2, 3, 6), outputs(2, 5, 7), batch(0, 2))
    assert torch.equal(contrast.constants, first)


def test_gradient_reaches_student_and_both_projections_and_not_the_teacher() -> None:
    contrast = term()
    student, teacher = outputs(2, 3, 2), outputs(2, 5, 3)
    for side in (student, teacher):
        side["embedding"].requires_grad_()
    contrast(student, teacher, batch(1, 4)).sum().backward()
    assert student["embedding"].grad is not None
    assert teacher["embedding"].grad is None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in contrast.parameters())


def test_one_class_and_invalid_numbers_are_refused(refused: Any) -> None:
    with refused("all training samples are of one class"):
        MemoryContrast(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    with refused("1 negative or more", "0, 0.5"):
        MemoryContrast(NUMBERS, LABELS, negatives=0)
