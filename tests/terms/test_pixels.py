"""Losses of single pixels, for logit maps of another resolution than the labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms import PixelCrossEntropy, PixelSoftTargets, SoftTargets
from tutelage.terms.pixels import resized


def batch(masks: Tensor) -> Batch:
    return Batch(torch.zeros(len(masks), 3, *masks.shape[1:]), masks, torch.arange(len(masks)), None)


def maps(seed: int, *size: int) -> Tensor:
    return torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    masks = torch.tensor([[[0, 3, -1], [1, 1, 2]], [[-1, -1, -1], [-1, -1, 2]]], dtype=torch.int16)
    logits = maps(0, 2, 3)
    expected = []
    for image, mask in zip(logits, masks, strict=True):
        losses = [
            float(image[:, y, x].logsumexp(0) - image[mask[y, x], y, x])
            for y in range(2)
            for x in range(3)
            if mask[y, x] >= 0
        ]
        expected.append(sum(losses) / len(losses))
    value = PixelCrossEntropy()(Outputs(logits), None, batch(masks))
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_an_image_without_labels_has_no_loss_and_no_gradient() -> None:
    logits = maps(0, 2, 3).requires_grad_()
    value = PixelCrossEntropy()(Outputs(logits), None, batch(torch.full((2, 2, 3), -1)))
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_smaller_logit_maps_are_enlarged_bilinearly() -> None:
    masks = torch.randint(-1, 4, (2, 8, 6), generator=torch.Generator().manual_seed(1))
    logits = maps(0, 4, 3)
    enlarged = F.interpolate(logits, (8, 6), mode="bilinear", align_corners=False)
    term = PixelCrossEntropy()
    torch.testing.assert_close(term(Outputs(logits), None, batch(masks)), term(Outputs(enlarged), None, batch(masks)))
    constant = resized(torch.full((1, 2, 3, 3), 2.5), (7, 5))
    torch.testing.assert_close(constant, torch.full((1, 2, 7, 5), 2.5))


@pytest.mark.parametrize("size", [(8, 6), (4, 3), (16, 12)])
def test_soft_targets_are_compared_at_the_larger_resolution(size: tuple[int, int]) -> None:
    student, teacher = maps(0, 8, 6), maps(1, *size)
    largest = max(size, (8, 6))
    expected = SoftTargets(3.0)(Outputs(resized(student, largest)), Outputs(resized(teacher, largest)), None)
    value = PixelSoftTargets(3.0)(Outputs(student), Outputs(teacher), None)
    assert value.shape == (2,)
    torch.testing.assert_close(value, expected)


def test_teachers_of_several_resolutions_are_averaged_as_probabilities() -> None:
    student, members = maps(0, 4, 4), (maps(1, 4, 4), maps(2, 8, 8))
    teacher = Outputs(None, members=tuple(map(Outputs, members)))
    value = PixelSoftTargets(2.0)(Outputs(student), teacher, None)
    probabilities = torch.stack([(resized(member, (8, 8)) / 2).softmax(1) for member in members]).mean(0)
    log_probs = (resized(student, (8, 8)) / 2).log_softmax(1)
    expected = 4 * (probabilities * (probabilities.log() - log_probs)).sum(1).mean((1, 2))
    torch.testing.assert_close(value, expected)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = maps(0, 4, 4).requires_grad_(), maps(1, 8, 8).requires_grad_()
    PixelSoftTargets()(Outputs(student), Outputs(teacher), None).sum().backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None
