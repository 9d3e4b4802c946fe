"""Deep mutual learning: known values, the direction of the divergence, and the difference to the peers' mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import mimicry_loss
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, Mimicry, SoftTargets

Z1, Z2 = torch.tensor([[0.0, 0]], dtype=torch.float64), torch.tensor([[math.log(3), 0]], dtype=torch.float64)


def kl(target: list[float], other: list[float]) -> float:
    return sum(q * math.log(q / p) for q, p in zip(target, other, strict=True))


@pytest.mark.parametrize(
    ("net", "peer", "label", "mimicry", "total"),
    [(Z1, Z2, 0.693147, 0.130812, 0.823959), (Z2, Z1, 0.287682, 0.143841, 0.431523)],
    ids=["net 1", "net 2"],
)
def test_known_values(
    net: Tensor, peer: Tensor, label: float, mimicry: float, total: float, batch_of: Callable[[Tensor], Batch]
) -> None:
    ce = CrossEntropy()(Outputs(net), None, batch_of(torch.tensor([0])))
    kd = Mimicry()(Outputs(net), Outputs(peer), None)
    assert ce.tolist() == pytest.approx([label], abs=1e-6)
    assert kd.tolist() == pytest.approx([mimicry], abs=1e-6)
    assert (ce + kd).tolist() == pytest.approx([total], abs=1e-6)


def test_identical_peers_count_as_one() -> None:
    three = Mimicry()(Outputs(Z1), Outputs.ensemble((Outputs(Z2), Outputs(Z2))), None)
    torch.testing.assert_close(three, Mimicry()(Outputs(Z1), Outputs(Z2), None))


@pytest.mark.parametrize("temperature", [1, 3])
def test_mimicry_is_mean_over_peers_unlike_soft_targets_of_their_mean(temperature: float) -> None:
    torch.manual_seed(0)
    student, *peers = (2 * torch.randn(4, 5, 6, dtype=torch.float64)).unbind()
    cohort = Outputs.ensemble(tuple(map(Outputs, peers)))
    per_peer, ensemble = [], []
    for sample in range(5):
        p = (student[sample] / temperature).softmax(0).tolist()
        q = [(peer[sample] / temperature).softmax(0).tolist() for peer in peers]
        per_peer.append(temperature**2 * sum(kl(student_probs, p) for student_probs in q) / 3)
        ensemble.append(temperature**2 * kl([sum(column) / 3 for column in zip(*q, strict=True)], p))
    dml, dml_e = (term(temperature)(Outputs(student), cohort, None) for term in (Mimicry, SoftTargets))
    assert dml.tolist() == pytest.approx(per_peer)
    assert dml_e.tolist() == pytest.approx(ensemble)
    assert (dml > dml_e + 1e-2).all()  # by Jensen's inequality


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_function_equals_term(temperature: float) -> None:
    torch.manual_seed(0)
    student, *peers = (2 * torch.randn(4, 5, 6)).unbind()
    expected = Mimicry(temperature)(Outputs(student), Outputs.ensemble(tuple(map(Outputs, peers))), None)
    assert torch.equal(mimicry_loss(student, *peers, temperature=temperature), expected)
    single = SoftTargets(temperature)(Outputs(student), Outputs(peers[0]), None)
    assert torch.equal(mimicry_loss(student, peers[0], temperature=temperature), single)


def test_no_gradient_reaches_any_peer() -> None:
    student, *peers = (logits.clone().requires_grad_() for logits in (Z1, Z2, 2 * Z2))
    Mimicry()(Outputs(student), Outputs.ensemble(tuple(map(Outputs, peers))), None).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0.1
    assert [peer.grad for peer in peers] == [None, None]


def test_default_temperature_is_one() -> None:
    value = Mimicry()(Outputs(Z1), Outputs(Z2), None)
    assert torch.equal(value, SoftTargets(1)(Outputs(Z1), Outputs(Z2), None))
