"""Extra evaluation of a linear network on the digits: corruptions, attacks and out-of-distribution data."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from tutelage.config import ExtraEvaluation
from tutelage.data import Data, open_data
from tutelage.evaluation import CORRUPTIONS, evaluate_extra
from tutelage.models.tapped import Tapped
from tutelage.tasks import evaluate

Refused = Callable[..., AbstractContextManager[None]]
NOTHING = {
    "corruptions": None,
    "corruption_accuracy": None,
    "pgd": None,
    "auac": None,
    "zero_gradient_share": None,
    "ood_auroc": None,
    "attacks": None,
    "robust_accuracy": None,
    "attack_curves": None,
    "attack_measures": None,
    "attack_refusals": None,
}


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def model(digits: Data) -> nn.Module:
    """Logistic regression fitted by scikit-learn."""
    images = digits.train.inputs
    assert isinstance(images, Tensor)
    fit_result = LogisticRegression(max_iter=1000).fit(images.flatten(1).numpy() / 255.0, digits.train.labels.numpy())
    layer = nn.Linear(64, 10)
    layer.weight.data = torch.from_numpy(fit_result.coef_).float()
    layer.bias.data = torch.from_numpy(fit_result.intercept_).float()
    return Tapped(nn.Sequential(nn.Flatten(), layer))


def test_all_extra_evaluations_on_the_digits(digits: Data, model: nn.Module, tiny_npz: str) -> None:
    result = evaluate_extra(model, digits, ExtraEvaluation(corruptions=True, pgd=(0.03, 0.01, 0.1), ood=tiny_npz))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == list(NOTHING)
    clean = evaluate(model, digits)["accuracy"]
    assert clean > 0.95

    assert list(result["corruptions"]) == list(CORRUPTIONS)
    shares = [share for by_severity in result["corruptions"].values() for share in by_severity]
    assert len(shares) == 5 * len(CORRUPTIONS)
    assert result["corruption_accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert 0.5 < result["corruption_accuracy"] < clean
    assert result["corruptions"]["gaussian_blur"][4] < result["corruptions"]["gaussian_blur"][0]

    assert list(result["pgd"]) == ["0.01", "0.03", "0.1"]
    assert clean > result["pgd"]["0.01"] > result["pgd"]["0.03"] > result["pgd"]["0.1"]
    assert result["pgd"]["0.1"] < 0.75 * clean
    shares = [clean, *result["pgd"].values()]
    expected_error = 0.01 * (shares[0] + shares[1]) + 0.02 * (shares[1] + shares[2]) + 0.07 * (shares[2] + shares[3])
    assert result["auac"] == pytest.approx(expected_error / 2 / 0.1)
    assert result["zero_gradient_share"] == 0
    assert 0.5 < result["ood_auroc"] < 1


def test_attacks_on_the_digits(digits: Data, model: nn.Module, refused: Refused) -> None:
    what = ExtraEvaluation(attacks="pgd:0.05:steps=5,square:0.05:queries=20", samples=60)  # type: ignore[arg-type]
    assert what.attacks == ("pgd:0.05:steps=5", "square:0.05:queries=20")
    assert what == ExtraEvaluation(attacks=what.attacks, samples=60)
    result = evaluate_extra(model, digits, what)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["attacks"]) == list(what.attacks)
    assert result["robust_accuracy"] <= min(result["attacks"].values()) < result["attack_curves"]["linf"]["0"]
    assert result["attack_curves"]["linf"]["0.05"] == result["robust_accuracy"]
    assert result["attack_refusals"] == {}
    with refused("did you mean 'pgd'"):
        evaluate_extra(model, digits, ExtraEvaluation(attacks=("pdg:0.1",)))


def test_evaluations_not_requested_are_null(digits: Data, model: nn.Module) -> None:
    assert evaluate_extra(model, digits, ExtraEvaluation()) == NOTHING
    partial_result = evaluate_extra(model, digits, ExtraEvaluation(pgd=(0.02,), samples=20))
    assert {name for name, value in partial_result.items() if value is not None} == {
        "pgd",
        "auac",
        "zero_gradient_share",
    }
    partial_result = evaluate_extra(model, digits, ExtraEvaluation(corruptions=True, samples=20))
    assert {name for name, value in partial_result.items() if value is not None} == {
        "corruptions",
        "corruption_accuracy",
    }


def test_result_is_reproducible_and_depends_on_the_seed(digits: Data, model: nn.Module) -> None:
    settings = ExtraEvaluation(corruptions=True, pgd=(0.02,))
    first = evaluate_extra(model, digits, settings, seed=1)
    assert first == evaluate_extra(model, digits, settings, seed=1)
    other = evaluate_extra(model, digits, settings, seed=2)
    assert other["corruptions"]["gaussian_noise"] != first["corruptions"]["gaussian_noise"]
    assert other["corruptions"]["jpeg"] == first["corruptions"]["jpeg"]


def test_limited_samples_contain_every_class(digits: Data, model: nn.Module) -> None:
    """If samples are sorted by class, as in folders, the first 60 would contain two of ten classes."""
    order = digits.test.labels.argsort(stable=True)
    by_class = replace(digits, test=digits.test.subset(order))
    spread = by_class.test.subset(torch.arange(60) * 360 // 60)
    assert len(spread.labels.unique()) == 10
    settings = ExtraEvaluation(corruptions=True, pgd=(0.02,))
    of_sixty = evaluate_extra(model, by_class, settings.replace(samples=60))
    assert of_sixty == evaluate_extra(model, replace(by_class, test=spread), settings)
    assert evaluate_extra(model, by_class, settings.replace(samples=5000)) == evaluate_extra(model, by_class, settings)


def test_requested_split_is_evaluated(digits: Data, model: nn.Module, refused: Refused) -> None:
    settings = ExtraEvaluation(pgd=(0.02,))
    swapped_data = replace(digits, test=digits.train, train=digits.test)
    assert evaluate_extra(model, digits, settings, split="train") == evaluate_extra(model, swapped_data, settings)
    with refused("unknown split 'tset'", "'test'"):
        evaluate_extra(model, digits, settings, split="tset")


def test_other_number_of_classes_is_refused(digits: Data, refused: Refused) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused("the network returns 4 logits, but digits has 10 classes"):
        evaluate_extra(small, digits, ExtraEvaluation(pgd=(0.1,)))


def test_missing_ood_data_set_is_refused_before_any_evaluation(digits: Data, model: nn.Module) -> None:
    from tutelage.errors import TutelageError

    with pytest.raises(TutelageError, match="unknown data set 'digts'"):
        evaluate_extra(model, digits, ExtraEvaluation(corruptions=True, ood="digts"))


# --- settings


def test_radii_are_sorted_and_unique() -> None:
    assert ExtraEvaluation(pgd=(0.3, 0.1, 0.3)).pgd == (0.1, 0.3)
    assert ExtraEvaluation(pgd="0.3, 0.1") == ExtraEvaluation(pgd=[0.1, 0.3])
    assert ExtraEvaluation(pgd=(1,)).pgd == (1.0,)


INVALID = {
    "radius 0": ({"pgd": (0.1, 0)}, ["pgd", "above 0 and at most 1", "(0.1, 0)"]),
    "radius in levels": ({"pgd": (8,)}, ["pgd", "above 0 and at most 1", "8"]),
    "negative radius": ({"pgd": "-0.1"}, ["pgd", "-0.1"]),
    "a word": ({"pgd": "0.1,far"}, ["pgd", "'far'"]),
    "nothing": ({"pgd": ""}, ["pgd", "''"]),
    "nan": ({"pgd": ("nan",)}, ["pgd", "nan"]),
    "no name": ({"ood": ""}, ["ood", "''"]),
    "no samples": ({"samples": 0}, ["samples", "0"]),
    "maybe": ({"corruptions": "maybe"}, ["corruptions", "'maybe'"]),
    "unknown": ({"corruption": True}, ["'corruption'", "'corruptions'"]),
}


@pytest.mark.parametrize(("fields", "message"), INVALID.values(), ids=INVALID)
def test_invalid_settings_are_refused(fields: dict[str, object], message: list[str], refused: Refused) -> None:
    with refused("the evaluation", *message):
        ExtraEvaluation(**fields)
