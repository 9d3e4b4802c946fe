"""The regulariser of the mean prediction, and mix-up."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tutelage.data.batch import Batch
from tutelage.methods.drpl.losses import MeanPrediction, MixUp, mean_prediction_loss
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import cross_entropy

NOTHING = Outputs(None)


def test_equals_plain_loops() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 5, dtype=torch.float64)
    rows = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits.tolist()]
    means = [sum(row[c] for row in rows) / 7 for c in range(5)]
    expected = -sum(math.log(mean) for mean in means) / 5
    assert float(mean_prediction_loss(logits)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_minimum_is_log_c_where_the_mean_is_uniform(classes: int) -> None:
    confident = 50 * torch.eye(classes).double()  # each sample of another class
    assert float(mean_prediction_loss(confident)) == pytest.approx(math.log(classes))
    assert float(mean_prediction_loss(torch.zeros(3, classes))) == pytest.approx(math.log(classes))
    torch.manual_seed(1)
    for _ in range(5):
        assert float(mean_prediction_loss(torch.randn(4, classes).double())) > math.log(classes)


def test_gradient_reaches_the_logits() -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mean_prediction_loss, logits)
    uniform = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    mean_prediction_loss(uniform).backward()  # type: ignore[no-untyped-call]
    assert uniform.grad is not None
    assert uniform.grad.abs().max() < 1e-15


def test_huge_logits_have_a_finite_value() -> None:
    assert float(mean_prediction_loss(torch.tensor([[1e4, 0.0], [1e4, 0.0]]))) == pytest.approx(5e3)


def test_term_equals_the_function() -> None:
    logits = torch.randn(6, 3)
    assert torch.equal(MeanPrediction()(Outputs(logits), None, None), mean_prediction_loss(logits))


def batch(size: int = 8, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(size, 2, 4, 4, generator=generator)
    labels = torch.rand(size, classes, generator=generator).softmax(1)
    return Batch(inputs, labels, torch.arange(size), None)


def test_images_and_labels_are_mixed_with_the_same_share_and_partner() -> None:
    original = batch()
    torch.manual_seed(4)
    mixed = MixUp()(original, NOTHING, None)
    torch.manual_seed(4)
    share, partners = float(torch.rand(())), torch.randperm(8).tolist()
    for row, partner in enumerate(partners):
        for mixture, source in ((mixed.inputs, original.inputs), (mixed.targets, original.targets)):
            assert torch.allclose(mixture[row], share * source[row] + (1 - share) * source[partner])


def test_shares_of_batches_are_uniform() -> None:
    torch.manual_seed(5)
    single = Batch(torch.eye(2), torch.eye(2), torch.arange(2), None)
    shares = []
    while len(shares) < 300:
        mixed = MixUp()(single, NOTHING, None).targets
        if mixed[0, 0] != 1:  # otherwise the partner is the sample itself
            shares.append(float(mixed[0, 0]))
    assert 0.45 < sum(shares) / 300 < 0.55
    assert 0.2 < sum(share < 0.25 for share in shares) / 300 < 0.3


def test_loss_of_the_mixed_label_is_the_mixture_of_the_losses() -> None:
    torch.manual_seed(6)
    logits = torch.randn(5, 4).double()
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 0, 0])
    share = 0.3
    label = share * F.one_hot(first, 4) + (1 - share) * F.one_hot(second, 4)
    expected = share * F.cross_entropy(logits, first, reduction="none") + (1 - share) * F.cross_entropy(
        logits, second, reduction="none"
    )
    torch.testing.assert_close(cross_entropy(logits, label), expected)
