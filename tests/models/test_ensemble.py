"""An ensemble as a network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.models.ensemble import Ensemble
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped


@pytest.fixture
def members(tiny_model: Callable[..., Tapped]) -> list[Tapped]:
    return [tiny_model(seed=0).eval(), tiny_model(seed=1, width=6).eval()]


def test_probabilities_are_the_mean_over_members(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    member_probabilities = [member(inputs).softmax(1).tolist() for member in members]
    expected = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in zip(*member_probabilities, strict=True)]
    logits = Ensemble(members)(inputs)
    torch.testing.assert_close(logits.exp(), torch.tensor(expected))
    torch.testing.assert_close(logits.softmax(1), torch.tensor(expected))  # the logits are log-probabilities


def test_logits_equal_those_of_ensemble_outputs(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    assert torch.equal(
        Ensemble(members)(inputs), Outputs.ensemble(tuple(member.tap(inputs) for member in members))["logits"]
    )


def test_one_member_keeps_its_logits(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    assert torch.equal(Ensemble(members[:1])(inputs), members[0](inputs))


def test_members_are_submodules(members: list[Tapped]) -> None:
    ensemble = Ensemble(members)
    assert len(list(ensemble.parameters())) == sum(len(list(member.parameters())) for member in members)
    ensemble.train()
    assert all(member.training for member in members)
    ensemble(torch.rand(5, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for member in members for parameter in member.parameters())


def test_half_precision_members_are_averaged_in_float32(members: list[Tapped]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = Ensemble(members)(torch.rand(5, 1, 8, 8))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(5))
