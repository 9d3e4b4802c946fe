"""Outputs: of one network, of several as one, and what is said when something is not in them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.models.outputs import Outputs, at_least_float32

INF = float("inf")


def random_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ensemble(*seeds: int) -> Outputs:
    return Outputs.ensemble(tuple(Outputs(random_logits(seed)) for seed in seeds))


def mean_of_softened(logits: list[Tensor], temperature: float) -> list[list[float]]:
    found = []
    for rows in zip(*(each.tolist() for each in logits), strict=True):
        powers = [[math.exp(x / temperature) for x in row] for row in rows]
        shares = [[power / sum(row) for power in row] for row in powers]
        found.append([sum(column) / len(column) for column in zip(*shares, strict=True)])
    return found


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_log_probs_are_those_of_the_mean_of_softened_probabilities(seeds: tuple[int, ...], temperature: float) -> None:
    expected = mean_of_softened([random_logits(seed) for seed in seeds], temperature)
    found = ensemble(*seeds).log_probs(temperature).exp()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4).double(), rtol=1e-14, atol=0)


def test_by_default_nothing_is_softened() -> None:
    assert torch.equal(Outputs(random_logits()).log_probs(), random_logits().log_softmax(1))


def test_the_logits_of_an_ensemble_are_the_log_of_its_mean_probabilities() -> None:
    found = ensemble(0, 1)
    torch.testing.assert_close(found["logits"].exp(), (random_logits(0).softmax(1) + random_logits(1).softmax(1)) / 2)
    softened_again = (found["logits"] / 4).log_softmax(1)
    assert not torch.allclose(found.log_probs(4), softened_again, atol=1e-2)  # the members are softened one by one


def test_an_ensemble_of_ensembles_weighs_its_members_alike() -> None:
    inner = ensemble(0, 1)
    found = Outputs.ensemble((inner, Outputs(random_logits(2)))).log_probs(4).exp()
    expected = (inner.log_probs(4).exp() + (random_logits(2) / 4).softmax(1)) / 2
    torch.testing.assert_close(found, expected)


def test_an_ensemble_of_one_is_itself() -> None:
    one = Outputs(random_logits())
    assert Outputs.ensemble((one,)) is one


def test_classes_that_members_exclude() -> None:
    sure, unsure = torch.tensor([[0.0, -INF, -INF]]), torch.tensor([[0.0, 0, -INF]])
    found = Outputs.ensemble((Outputs(sure), Outputs(unsure))).log_probs()
    assert found.exp().tolist() == [pytest.approx([0.75, 0.25, 0])]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_log_probs_are_computed_in_float32(half: torch.dtype) -> None:
    rounded = random_logits().to(half)
    found = Outputs(rounded).log_probs(3)
    assert found.dtype == torch.float32
    assert torch.equal(found, Outputs(rounded.float()).log_probs(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_what_is_no_half_precision_stays_as_it_is(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, dtype=dtype)
    assert at_least_float32(tensor) is tensor


def test_gradcheck_through_an_ensemble() -> None:
    given = [random_logits(seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda *z: Outputs.ensemble(tuple(map(Outputs, z))).log_probs(2), given)


def test_roles_are_read_by_name() -> None:
    logits, stage = random_logits(), torch.rand(4, 2, 3, 3)
    found = Outputs(logits, {"stage1": stage})
    assert found["logits"] is logits
    assert found["stage1"] is stage


@pytest.mark.parametrize(
    ("outputs", "role", "pieces"),
    [
        (Outputs(random_logits(), {"stage1": torch.rand(4, 2, 3, 3)}), "stage2", ["hold logits, stage1)", "`roles`"]),
        (Outputs(None, {"stage1": torch.rand(4, 2, 3, 3)}), "logits", ["hold stage1)", "`roles`"]),
        (Outputs(None), "logits", ["hold nothing)"]),
        (ensemble(0, 1), "stage1", ["hold logits)", "an ensemble has no common features", "use one teacher"]),
    ],
    ids=["feature", "logits", "nothing", "ensemble"],
)
def test_what_is_absent_is_named_beside_what_is_there(
    outputs: Outputs, role: str, pieces: list[str], refused: Any
) -> None:
    with refused(f"no {role!r}", *pieces):
        outputs[role]


def test_members_without_logits_make_an_ensemble_without_logits(refused: Any) -> None:
    """Several teachers of whom only a stage was asked: it is the stage that they have not in common."""
    members = tuple(Outputs(None, {"stage1": torch.rand(4, 2, 3, 3)}) for _ in range(2))
    found = Outputs.ensemble(members)
    assert found.logits is None
    assert found.members == members
    with refused("no 'stage1'", "an ensemble has no common features"):
        found["stage1"]


def test_detach_cuts_logits_features_and_members_and_keeps_their_values() -> None:
    given = [random_logits(seed).requires_grad_() for seed in (0, 1)]
    stage = torch.rand(4, 2, 3, 3, requires_grad=True)
    whole = Outputs.ensemble((Outputs(given[0], {"stage1": stage}), Outputs(given[1])))
    found = whole.detach()
    cut = [found["logits"], *(m["logits"] for m in found.members), found.members[0]["stage1"]]
    assert not any(tensor.requires_grad for tensor in [*cut, found.log_probs(4)])
    for tensor, before in zip(cut, [whole["logits"], *given, stage], strict=True):
        assert torch.equal(tensor, before)
    assert whole["logits"].requires_grad  # the outputs themselves are as they were
    assert Outputs(None, {"stage1": stage}).detach().logits is None
