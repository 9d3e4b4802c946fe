"""Networks that answer as one, as a network."""

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


def test_its_probabilities_are_the_mean_of_its_members(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    each = [member(inputs).softmax(1).tolist() for member in members]
    expected = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in zip(*each, strict=True)]
    found = Ensemble(members)(inputs)
    torch.testing.assert_close(found.exp(), torch.tensor(expected))
    torch.testing.assert_close(found.softmax(1), torch.tensor(expected))  # they are its probabilities as logits too


def test_it_answers_as_the_outputs_of_its_members_do(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    assert torch.equal(
        Ensemble(members)(inputs), Outputs.ensemble(tuple(member.tap(inputs) for member in members))["logits"]
    )


def test_one_network_is_itself(members: list[Tapped]) -> None:
    inputs = torch.rand(5, 1, 8, 8)
    assert torch.equal(Ensemble(members[:1])(inputs), members[0](inputs))


def test_its_members_are_moved_trained_and_set_to_eval_with_it(members: list[Tapped]) -> None:
    whole = Ensemble(members)
    assert len(list(whole.parameters())) == sum(len(list(member.parameters())) for member in members)
    whole.train()
    assert all(member.training for member in members)
    whole(torch.rand(5, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for member in members for parameter in member.parameters())


def test_half_precision_members_are_averaged_in_float32(members: list[Tapped]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = Ensemble(members)(torch.rand(5, 1, 8, 8))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))
