"""Evaluation under several attacks: closed forms of a plane, worst case, curves, refusals and side effects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, labels_of, plane
from tutelage.attacks import PGD, Attack, SurrogateGradient, Targeted
from tutelage.data import Data, Split
from tutelage.evaluation import evaluate_attacks
from tutelage.evaluation.perturbations import MEASURES
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]
DEN = "den:l1=0:l2=0.2:extra=150"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return plane(scale=0.5).float()


@pytest.fixture(scope="module")
def split(model: nn.Module) -> Split:
    """Grey images, a fifth of which is mislabelled."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(60, 196, (40, 4, 4, 1), generator=generator, dtype=torch.uint8)
    labels = labels_of(model, pixels(stored))
    return Split.of(stored, labels ^ (torch.arange(40) % 5 == 0).long())


def pixels(stored: Any) -> Tensor:
    result: Tensor = stored.permute(0, 3, 1, 2) / 255
    return result


def test_a_plane_has_the_accuracies_of_the_closed_form(model: nn.Module, split: Split) -> None:
    exact = distances(model, pixels(split.inputs))
    correct = torch.arange(40) % 5 != 0
    radius = float(exact["linf"][correct].median()) + 1e-3
    report = evaluate_attacks(model, split, [f"pgd:{radius}", f"square:{radius}:queries=20", DEN])
    assert report.clean == 0.8
    assert torch.equal(report.correct, correct)
    expected = float((correct & (exact["linf"] > radius)).double().mean())
    assert report.results[f"pgd:{radius}"].accuracy == pytest.approx(expected)
    assert report.robust_accuracy == pytest.approx(expected)
    curve = report.curves()["l2"]
    for limit in (0.0, 0.1, 0.178, 1.0):
        outer = float((correct & (exact["l2"] > limit)).double().mean())
        inner = float((correct & (exact["l2"] * 1.06 > limit)).double().mean())
        assert outer - 1e-9 <= curve[limit] <= inner + 1e-9
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert report.curves()["linf"] == {0.0: 0.8, radius: pytest.approx(expected)}


class Blackens(Attack):
    """Returns black images, whatever the labels."""

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        return torch.zeros_like(inputs)


def test_an_attack_is_not_trusted(model: nn.Module, split: Split) -> None:
    """What it returns counts if it is misclassified, at the distance that it has."""
    result = evaluate_attacks(model, split, {"black": Blackens()}).results["black"]
    images, correct = pixels(split.inputs), torch.arange(40) % 5 != 0
    black = labels_of(model, torch.zeros(1, 1, 4, 4))[0]
    broken = (labels_of(model, images) != black) & correct
    assert 0 < broken.sum() < 32
    assert torch.equal(result.success, broken | ~correct)
    expected = images.flatten(1).norm(dim=1).double().where(broken, math.inf).where(correct, 0.0)
    torch.testing.assert_close(result.measures["l2"], expected, rtol=1e-5, atol=1e-6)
    assert set(result.measures) == set(MEASURES)


def test_any_attack_may_break_a_sample_within_the_radius_of_another(model: nn.Module, split: Split) -> None:
    """A random search of one query finds little; the nearest points are within its radius all the same."""
    radius = 1.1 * float(distances(model, pixels(split.inputs))["linf"].max())
    weak = f"square:{radius}:queries=1"
    alone = evaluate_attacks(model, split, [weak])
    both = evaluate_attacks(model, split, [weak, "den:l1=0:l2=0:extra=1:norm=linf"])
    assert alone.robust_accuracy == alone.results[weak].accuracy
    assert both.results[weak].accuracy == alone.results[weak].accuracy
    assert alone.robust_accuracy is not None
    assert alone.robust_accuracy > 0.1
    assert both.robust_accuracy == 0


class Masked(nn.Module):
    """A plane behind a rounding that has no gradient."""

    def __init__(self, inside: nn.Module, rounding: nn.Module | None = None) -> None:
        super().__init__()
        self.inside, self.rounding = inside, rounding

    def forward(self, images: Tensor) -> Tensor:
        rounded = (images * 63).round() / 63 if self.rounding is None else self.rounding(images)
        logits: Tensor = self.inside(rounded)
        return logits


def test_the_accuracy_of_an_attack_without_gradients_is_refused(model: nn.Module, split: Split) -> None:
    radius = 1.5 * float(distances(model, pixels(split.inputs))["linf"].median())
    pgd, square = f"pgd:{radius}", f"square:{radius}"
    alone = evaluate_attacks(Masked(model), split, [pgd])
    assert alone.results[pgd].blind == 1
    assert alone.results[pgd].accuracy is None
    assert alone.robust_accuracy is None
    assert alone.curves() == {}
    refusal = alone.results[pgd].refusal
    assert "\n" not in refusal
    for part in ("100% of the 31 correctly classified samples", "square:RADIUS", "SurrogateGradient", "loss=margin"):
        assert part in refusal
    report = evaluate_attacks(Masked(model), split, [pgd, square])
    assert report.results[pgd].accuracy is None
    assert report.robust_accuracy == report.results[square].accuracy is not None

    rounding = SurrogateGradient(lambda images: (images * 63).round() / 63)
    replaced = evaluate_attacks(Masked(model, rounding), split, [pgd])
    assert replaced.results[pgd].accuracy is not None
    assert replaced.results[pgd].accuracy <= report.results[square].accuracy
    content = json.loads(json.dumps(alone.as_json(), allow_nan=False))
    assert content["attacks"] == {pgd: None}
    assert content["attack_refusals"] == {pgd: refusal}


def test_nan_gradients_refuse_the_attack_that_needs_them_and_no_other(split: Split, model: nn.Module) -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return logits + (images.flatten(1)[:, :1] * 0).sqrt()

    report = evaluate_attacks(Root(), split, ["pgd:0.1", "square:0.1:queries=9"])
    assert "NaN or infinite" in report.results["pgd:0.1"].refusal
    assert report.results["square:0.1:queries=9"].accuracy is not None


def test_a_saturated_softmax_is_refused_and_its_margin_is_not(split: Split) -> None:
    saturated = plane(scale=1e5).float()
    report = evaluate_attacks(saturated, split, ["pgd:0.1", "pgd:0.1:loss=margin"])
    assert report.results["pgd:0.1"].accuracy is None
    assert report.results["pgd:0.1:loss=margin"].accuracy is not None


def test_results_do_not_depend_on_the_batch_size_nor_on_the_other_attacks(split: Split) -> None:
    model = Double(plane(scale=0.5))
    first = evaluate_attacks(model, split, ["pgd:0.02:steps=3", "square:0.02:queries=9"], batch_size=7)
    second = evaluate_attacks(model, split, ["square:0.02:queries=9", PGD(radius=0.02, steps=3)], batch_size=40)
    assert set(first.results) == set(second.results) == {"pgd:0.02:steps=3", "square:0.02:queries=9"}
    for text, result in first.results.items():
        assert torch.equal(result.success, second.results[text].success)
        torch.testing.assert_close(result.measures["l2"], second.results[text].measures["l2"])
    third = evaluate_attacks(model, split, ["pgd:0.02:steps=3"], seed=1)
    assert not torch.equal(
        third.results["pgd:0.02:steps=3"].measures["l2"], first.results["pgd:0.02:steps=3"].measures["l2"]
    )


class Double(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inside(images.double())
        return logits


def test_the_network_does_not_change(
    tiny_data: Data, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    model = tiny_model(dropout=0.5).train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    before, modes = state_of(model), [module.training for module in model.modules()]
    randomness = torch.get_rng_state()
    evaluate_attacks(model, tiny_data.test, ["pgd:0.1:steps=2", "square:0.1:queries=3"], workers=0)
    assert changed(before, state_of(model)) == set()
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(randomness, torch.get_rng_state())


def test_medians_are_those_of_the_broken_samples(model: nn.Module, split: Split) -> None:
    report = evaluate_attacks(model, split, [DEN, "pgd:0"])
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["attacks"] == {"pgd:0": 0.8}
    measures = content["attack_measures"]
    assert measures[DEN]["found"] == 1
    lengths = report.results[DEN].measures["l2"]
    assert measures[DEN]["l2"] == pytest.approx(float(lengths[report.correct].median()))
    assert measures["pgd:0"] == {"found": 0, **dict.fromkeys(MEASURES)}
    assert content["attack_curves"]["l2"]["0"] == 0.8


def test_invalid_attacks_are_refused(model: nn.Module, split: Split, refused: Refused) -> None:
    with refused("did you mean 'pgd'"):
        evaluate_attacks(model, split, ["pdg:0.1"])
    with refused("targeted criterion"):
        evaluate_attacks(model, split, [PGD(radius=0.1, criterion=Targeted())])
