"""Outputs of one network and of an ensemble, and errors for missing roles."""

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
    result = []
    for rows in zip(*(values.tolist() for values in logits), strict=True):
        exponentials = [[math.exp(x / temperature) for x in row] for row in rows]
        probabilities = [[power / sum(row) for power in row] for row in exponentials]
        result.append([sum(column) / len(column) for column in zip(*probabilities, strict=True)])
    return result


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_log_probs_are_the_log_of_mean_softened_probabilities(seeds: tuple[int, ...], temperature: float) -> None:
    expected = mean_of_softened([random_logits(seed) for seed in seeds], temperature)
    result = ensemble(*seeds).log_probs(temperature).exp()
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.sum(1), torch.ones(4).double(), rtol=1e-14, atol=0)


def test_the_default_temperature_is_1() -> None:
    assert torch.equal(Outputs(random_logits()).log_probs(), random_logits().log_softmax(1))


def test_logits_of_an_ensemble_are_the_log_of_mean_probabilities() -> None:
    result = ensemble(0, 1)
    torch.testing.assert_close(result["logits"].exp(), (random_logits(0).softmax(1) + random_logits(1).softmax(1)) / 2)
    softened_ensemble = (result["logits"] / 4).log_softmax(1)
    assert not torch.allclose(result.log_probs(4), softened_ensemble, atol=1e-2)  # members are softened separately


def test_nested_ensembles_weight_members_equally() -> None:
    inner = ensemble(0, 1)
    result = Outputs.ensemble((inner, Outputs(random_logits(2)))).log_probs(4).exp()
    expected = (inner.log_probs(4).exp() + (random_logits(2) / 4).softmax(1)) / 2
    torch.testing.assert_close(result, expected)


def test_an_ensemble_of_one_is_its_member() -> None:
    single_teacher = Outputs(random_logits())
    assert Outputs.ensemble((single_teacher,)) is single_teacher


def test_classes_with_probability_0() -> None:
    certain_logits, uncertain_logits = torch.tensor([[0.0, -INF, -INF]]), torch.tensor([[0.0, 0, -INF]])
    result = Outputs.ensemble((Outputs(certain_logits), Outputs(uncertain_logits))).log_probs()
    assert result.exp().tolist() == [pytest.approx([0.75, 0.25, 0])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probs_are_computed_in_float32(dtype: torch.dtype) -> None:
    rounded_logits = random_logits().to(dtype)
    result = Outputs(rounded_logits).log_probs(3)
    assert result.dtype == torch.float32
    assert torch.equal(result, Outputs(rounded_logits.float()).log_probs(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_dtypes_do_not_change(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, dtype=dtype)
    assert at_least_float32(tensor) is tensor


def test_gradcheck_through_an_ensemble() -> None:
    inputs = [random_logits(seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda *z: Outputs.ensemble(tuple(map(Outputs, z))).log_probs(2), inputs)


def test_values_are_read_by_role() -> None:
    logits, stage = random_logits(), torch.rand(4, 2, 3, 3)
    result = Outputs(logits, {"stage1": stage})
    assert result["logits"] is logits
    assert result["stage1"] is stage


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
def test_a_missing_role_raises_and_lists_the_roles(
    outputs: Outputs, role: str, pieces: list[str], refused: Any
) -> None:
    with refused(f"no {role!r}", *pieces):
        outputs[role]


def test_without_logits_of_a_member_the_ensemble_has_none(refused: Any) -> None:
    """For example several teachers of which only a stage was requested."""
    members = tuple(Outputs(None, {"stage1": torch.rand(4, 2, 3, 3)}) for _ in range(2))
    result = Outputs.ensemble(members)
    assert result.logits is None
    assert result.members == members
    with refused("no 'stage1'", "an ensemble has no common features"):
        result["stage1"]


def test_detach_removes_gradients_and_keeps_values() -> None:
    inputs = [random_logits(seed).requires_grad_() for seed in (0, 1)]
    stage = torch.rand(4, 2, 3, 3, requires_grad=True)
    ensemble_outputs = Outputs.ensemble((Outputs(inputs[0], {"stage1": stage}), Outputs(inputs[1])))
    result = ensemble_outputs.detach()
    tensors = [result["logits"], *(m["logits"] for m in result.members), result.members[0]["stage1"]]
    assert not any(tensor.requires_grad for tensor in [*tensors, result.log_probs(4)])
    for tensor, before in zip(tensors, [ensemble_outputs["logits"], *inputs, stage], strict=True):
        assert torch.equal(tensor, before)
    assert ensemble_outputs["logits"].requires_grad  # the original is unchanged
    assert Outputs(None, {"stage1": stage}).detach().logits is None
