"""Estimating which labels are wrong: calibration, noise matrix, true classes, order."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.methods.clean_labels import Evidence, judge
from tutelage.methods.clean_labels.noise import (
    calibrated,
    label_likelihood,
    noise_matrix,
    shrunk,
    symmetric_share,
    true_class_posterior,
    true_classes,
)

PAIR = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]], dtype=torch.float64)
SYMMETRIC = torch.full((3, 3), 0.1, dtype=torch.float64) + 0.7 * torch.eye(3)


def ideal(matrix: Tensor, true: Tensor, labels: Tensor) -> Evidence:
    """Networks that know the true class of each sample and the noise: p[y] = T[true, y]."""
    probabilities = matrix[true].float()
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    other = probabilities.scatter(1, labels[:, None], 0).amax(1)
    return Evidence(probabilities, probabilities, own - other, probabilities, torch.ones_like(labels))


def noisy(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """True classes, and labels in exactly the shares of the noise matrix."""
    size = len(matrix)
    true = torch.arange(size).repeat_interleave(count // size)
    labels = [torch.arange(size).repeat_interleave((row * (count // size)).round().long()) for row in matrix]
    return true, torch.cat(labels)


def test_calibration_finds_the_best_temperature_of_a_grid() -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (300,))
    logits = 5 * (torch.randn(300, 4) + F.one_hot(labels, 4))
    result = calibrated(logits.softmax(1), labels)
    loss = float(F.nll_loss(result.log(), labels))
    grid = [float(F.cross_entropy(logits.double() / t, labels)) for t in torch.linspace(0.2, 15, 500).tolist()]
    assert loss <= 1.001 * min(grid)  # probabilities below 1e-9 count as 1e-9
    assert torch.equal(result.argmax(1), logits.argmax(1))
    assert float(F.cross_entropy(logits, labels)) > 1.2 * loss  # it was overconfident


@pytest.mark.parametrize("matrix", [PAIR, SYMMETRIC], ids=["pair", "symmetric"])
@pytest.mark.parametrize("rounds", [0, 3])
def test_noise_matrix_of_ideal_networks_is_exact(matrix: Tensor, rounds: int) -> None:
    true, labels = noisy(matrix, 600)
    assert torch.allclose(noise_matrix(matrix[true], labels, rounds), matrix, atol=0.01 if rounds else 1e-9)


def test_confident_joint_equals_plain_loops() -> None:
    torch.manual_seed(1)
    probabilities = torch.randn(200, 4).double().mul(2).softmax(1)
    labels = torch.randint(4, (200,))
    rows, given = probabilities.tolist(), labels.tolist()
    sizes = [given.count(y) for y in range(4)]
    limits = [sum(row[y] for row, label in zip(rows, given, strict=True) if label == y) / sizes[y] for y in range(4)]
    joint = [[0.0] * 4 for _ in range(4)]
    for row, label in zip(rows, given, strict=True):
        reached = [k for k in range(4) if row[k] >= limits[k]]
        if reached:
            joint[max(reached, key=lambda k: row[k])][label] += 1
    for y in range(4):
        total = sum(joint[k][y] for k in range(4))
        for k in range(4):
            joint[k][y] *= sizes[y] / total
    expected = [[value / sum(row) for value in row] for row in joint]
    assert torch.allclose(noise_matrix(probabilities, labels, 0), torch.tensor(expected).double(), atol=1e-9)


def test_class_without_labels_has_no_noise() -> None:
    torch.manual_seed(2)
    result = noise_matrix(torch.randn(60, 3).double().softmax(1), torch.arange(60) % 2)
    assert result[2].tolist() == [0, 0, 1]
    assert torch.allclose(result.sum(1), torch.ones(3).double())


def test_true_classes_are_distributions_and_each_iteration_raises_the_likelihood() -> None:
    torch.manual_seed(2)
    probabilities = torch.randn(50, 3).double().softmax(1)

    def likelihood(iterations: int) -> Tensor:
        classes = true_classes(probabilities, PAIR, iterations)
        assert torch.allclose(classes.sum(1), torch.ones(50).double())
        assert (classes >= 0).all()
        return (probabilities * (classes @ PAIR).clamp_min(1e-12).log()).sum(1)

    values = [likelihood(n) for n in (0, 1, 2, 5, 20)]
    assert all((after >= before - 1e-9).all() for before, after in pairwise(values))


def test_true_classes_invert_the_noise() -> None:
    classes = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], dtype=torch.float64)
    assert torch.allclose(true_classes(classes @ SYMMETRIC, SYMMETRIC, 20_000), classes, atol=1e-3)


@pytest.mark.parametrize("matrix", [PAIR, SYMMETRIC], ids=["pair", "symmetric"])
@pytest.mark.parametrize("by", ["posterior", "out_of_sample", "differences", "agreement"])
def test_ideal_networks_find_every_wrong_label(matrix: Tensor, by: str) -> None:
    true, labels = noisy(matrix, 600)
    verdict = judge(ideal(matrix, true, labels), labels, by)  # type: ignore[arg-type]
    corrupted = labels != true
    assert torch.equal(verdict.wrong > 0.5, corrupted)
    assert torch.equal(verdict.suggested[corrupted], true[corrupted])
    assert float(verdict.wrong.mean()) == pytest.approx(float(corrupted.float().mean()), abs=0.05)
    assert torch.allclose(verdict.noise_matrix, matrix, atol=0.01)
    assert torch.allclose(verdict.fold_matrices, verdict.noise_matrix[None], atol=1e-12)  # one fold


def test_correct_labels_are_not_doubted() -> None:
    true = torch.arange(300) % 3
    verdict = judge(ideal(torch.eye(3).double(), true, true), true)
    assert float(verdict.wrong.max()) < 1e-6


def test_the_probability_never_rises_with_the_evidence_for_the_label() -> None:
    torch.manual_seed(4)
    labels = torch.randint(3, (400,))
    probabilities = torch.randn(400, 3).add(F.one_hot(labels, 3)).softmax(1)
    trajectory, votes = probabilities.roll(2, 0), probabilities.roll(1, 0)
    evidence = Evidence(probabilities, trajectory, 2 * torch.rand(400) - 1, votes, torch.ones_like(labels))
    for by in ("posterior", "out_of_sample", "differences", "agreement"):
        verdict = judge(evidence, labels, by)  # type: ignore[arg-type]
        ordered = verdict.wrong[verdict.support[by].argsort()]
        assert (ordered.diff() <= 1e-12).all()
        assert (verdict.suggested != labels).all()
        assert ((ordered >= 0) & (ordered <= 1)).all()


@pytest.mark.parametrize("matrix", [PAIR, SYMMETRIC], ids=["pair", "symmetric"])
def test_posteriors_of_ideal_networks_are_the_true_classes(matrix: Tensor) -> None:
    true, labels = noisy(matrix, 6000)
    posterior = true_class_posterior(matrix[true], matrix, labels)
    assert torch.allclose(posterior.sum(1), torch.ones(6000).double())
    assert torch.allclose(posterior, F.one_hot(true, 3).double(), atol=0.02)


def test_posteriors_and_likelihood_equal_a_search_over_temperatures_in_plain_loops() -> None:
    torch.manual_seed(5)
    true, labels = noisy(SYMMETRIC, 300)
    classes = (torch.randn(300, 3).double() + 2 * F.one_hot(true, 3)).softmax(1)
    probabilities = classes @ SYMMETRIC
    rows, best, expected = true_classes(probabilities, SYMMETRIC).tolist(), -float("inf"), torch.empty(0)
    for step in range(400):
        exponent = math.exp(3 - step * 6 / 399)
        total, posterior = 0.0, []
        for row, y in zip(rows, labels.tolist(), strict=True):
            weights = [q**exponent for q in row]
            joint = [q / sum(weights) * float(SYMMETRIC[k, y]) for k, q in enumerate(weights)]
            total += math.log(sum(joint))
            posterior.append([value / sum(joint) for value in joint])
        if total > best:
            best, expected = total, torch.tensor(posterior).double()
    assert torch.allclose(true_class_posterior(probabilities, SYMMETRIC, labels), expected, atol=0.01)
    assert label_likelihood(probabilities, SYMMETRIC, labels) == pytest.approx(best, abs=0.01)


def test_networks_that_are_too_flat_leave_as_many_labels_doubted_as_are_wrong() -> None:
    torch.manual_seed(6)
    true, labels = noisy(SYMMETRIC, 3000)
    flat = (torch.rand(3000, 3).double() + 1.2 * F.one_hot(true, 3)).softmax(1)  # always right, never certain
    probabilities = flat @ SYMMETRIC
    own = labels[:, None]
    unsharpened = true_classes(probabilities, SYMMETRIC) * SYMMETRIC[:, labels].T
    unsharpened = unsharpened / unsharpened.sum(1, keepdim=True)
    sharpened = true_class_posterior(probabilities, SYMMETRIC, labels).gather(1, own)
    assert float((unsharpened.gather(1, own) < 0.5).double().mean()) < 0.1
    assert float((sharpened < 0.5).double().mean()) == pytest.approx(0.2, abs=0.02)


def test_a_label_that_no_class_explains_is_not_doubted() -> None:
    matrix = torch.eye(3).double()
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    posterior = true_class_posterior(probabilities, matrix, torch.tensor([2, 1]))
    assert posterior.argmax(1).tolist() == [2, 1]


def confused(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """True classes, labels, and probabilities of networks that confuse the first two of five classes."""
    torch.manual_seed(7)
    true, labels = noisy(matrix, count)
    logits = 1.5 * torch.randn(count, 5).double() + 5 * F.one_hot(true, 5)
    similar = true < 2
    logits[similar, :2] = logits[similar, :2].mean(1, keepdim=True) + 2.5 * torch.randn(int(similar.sum()), 2).double()
    return true, labels, calibrated(logits.softmax(1) @ matrix, labels)


PAIR_OF_FIVE = 0.7 * torch.eye(5).double() + 0.3 * torch.eye(5).double().roll(1, 1)
SYMMETRIC_OF_FIVE = 0.5 * torch.eye(5).double() + 0.1


def test_noise_of_one_direction_is_not_shrunk_and_confused_classes_are() -> None:
    for matrix, least, most in ((PAIR_OF_FIVE, 0.0, 0.0), (SYMMETRIC_OF_FIVE, 0.3, 1.0)):
        _, labels, probabilities = confused(matrix, 1000)
        estimated = noise_matrix(probabilities, labels)
        share = symmetric_share(probabilities, estimated, labels)
        assert least <= share <= most
        error, before = (float((m - matrix).abs().sum()) for m in (shrunk(estimated, labels, share), estimated))
        assert error < 0.95 * before if least else error == before


def test_the_symmetric_share_maximises_akaikes_criterion() -> None:
    _, labels, probabilities = confused(SYMMETRIC_OF_FIVE, 500)
    matrix = noise_matrix(probabilities, labels)

    def criterion(share: float) -> float:
        return label_likelihood(probabilities, shrunk(matrix, labels, share), labels) - 20 * (1 - share)

    share = symmetric_share(probabilities, matrix, labels)
    assert all(criterion(share) >= criterion(step / 10) for step in range(11))


def test_shrinking_keeps_the_noise_rate_and_classes_without_labels() -> None:
    matrix = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]]).double()
    labels = torch.tensor([0, 1, 1, 0])
    assert torch.equal(shrunk(matrix, labels, 0.0), matrix)
    halfway = torch.tensor([[0.75, 0.25, 0.0], [0.15, 0.85, 0.0], [0.0, 0.0, 1.0]]).double()
    assert torch.allclose(shrunk(matrix, labels, 0.5), halfway)
    assert torch.equal(shrunk(torch.eye(2).double(), torch.tensor([1, 1]), 1.0), torch.eye(2).double())


def test_soft_labels_are_the_geometric_mean_where_both_kinds_of_networks_agree() -> None:
    torch.manual_seed(8)
    true, labels = noisy(SYMMETRIC, 300)
    one, other = ((torch.randn(300, 3) + 1.5 * F.one_hot(true, 3)).softmax(1) for _ in range(2))
    evidence = Evidence(one, other, torch.zeros(300), one, torch.ones_like(labels))
    verdict = judge(evidence, labels)
    first = true_class_posterior(calibrated(one, labels), verdict.noise_matrix, labels)
    second = true_class_posterior(other.double(), verdict.noise_matrix, labels)
    agree = first.argmax(1) == second.argmax(1)
    assert 0 < int(agree.sum()) < 300
    assert (verdict.soft_labels[~agree] == 0).all()
    mean = (first.clamp_min(1e-9) * second.clamp_min(1e-9)).sqrt()
    mean /= mean.sum(1, keepdim=True)
    assert torch.allclose(verdict.soft_labels[agree], mean[agree], atol=1e-6)
    assert torch.allclose(verdict.support["posterior"].double(), mean.gather(1, labels[:, None])[:, 0], atol=1e-5)
