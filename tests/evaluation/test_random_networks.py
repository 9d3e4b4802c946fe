"""Evaluation of networks that are random in eval mode: fixed seeds, and the advice to average over draws."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import labels_of, plane
from tutelage.data import Split
from tutelage.errors import TutelageWarning
from tutelage.evaluation import evaluate_attacks, pgd_accuracies, predict
from tutelage.models.random_state import fixed_draws, is_random


class Noisy(nn.Module):
    is_random = True

    def __init__(self) -> None:
        super().__init__()
        self.inside = plane(scale=0.5).float()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inside(images)
        return logits + 0.3 * torch.randn_like(logits)


class Undeclared(Noisy):
    is_random = False


@pytest.fixture
def split() -> Split:
    stored = torch.randint(60, 196, (40, 4, 4, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split.of(stored, labels_of(Noisy().inside, stored.permute(0, 3, 1, 2) / 255))


def test_predictions_depend_on_the_seed_alone_and_leave_the_callers_numbers(split: Split) -> None:
    model = Noisy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = predict(model, split, device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(predict(model, split, device="cpu"), first)
    assert not torch.equal(predict(model, split, device="cpu", seed=1), first)


def test_other_networks_are_not_seeded(split: Split) -> None:
    """Dropout and the like in training depend on the run's own numbers."""
    assert not is_random(plane())
    with fixed_draws(plane(), 1):
        assert torch.equal(torch.get_rng_state(), torch.get_rng_state())
        inside = torch.rand(1)
    assert not torch.equal(torch.rand(1), inside)
    model = nn.Sequential(Noisy())
    assert is_random(model)
    with fixed_draws(model, 1):
        one = torch.rand(1)
    with fixed_draws(model, 1):
        assert torch.equal(torch.rand(1), one)


@pytest.mark.parametrize("network", [Noisy, Undeclared])
def test_an_attack_on_one_draw_is_answered_by_the_advice_to_average(network: type[Noisy], split: Split) -> None:
    model = network()
    with pytest.warns(TutelageWarning, match=r"random: .* pgd:0.1 follows .* pgd:RADIUS:draws=20") as caught:
        evaluate_attacks(model, split, ["pgd:0.1", "pgd:0.1:draws=3", "square:0.1:queries=3"])
    assert len(caught) == 1
    assert "draws=3 follows" not in str(caught[0].message)
    with pytest.warns(TutelageWarning, match="random: .* --pgd follows"):
        pgd_accuracies(model, split, [0.1])


def test_there_is_no_advice_where_none_is_due(split: Split) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_attacks(Noisy(), split, ["pgd:0.1:draws=2", "square:0.1:queries=3"])
        evaluate_attacks(Noisy().inside, split, ["pgd:0.1"])
        pgd_accuracies(Noisy().inside, split, [0.1])


@pytest.mark.filterwarnings("ignore:the network is random")
def test_attacks_on_a_random_network_can_be_repeated_and_do_not_depend_on_each_other(split: Split) -> None:
    model = Noisy()
    first = evaluate_attacks(model, split, ["square:0.05:queries=9", "pgd:0.02:draws=2"]).results["pgd:0.02:draws=2"]
    second = evaluate_attacks(model, split, ["pgd:0.02:draws=2"]).results["pgd:0.02:draws=2"]
    assert torch.equal(first.success, second.success)
    assert torch.equal(first.measures["l2"], second.measures["l2"])
    other = evaluate_attacks(model, split, ["pgd:0.02:draws=2"], seed=1).results["pgd:0.02:draws=2"]
    assert not torch.equal(first.measures["l2"], other.measures["l2"])
