"""The method mi_pruning: which blocks it removes, what remains, and training afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.evaluation.cost import parameters
from tutelage.methods import find
from tutelage.methods.mi_pruning import Scoring
from tutelage.methods.mi_pruning.clusters import remaining
from tutelage.models.load import make_model
from tutelage.models.surgery import applied_operations
from tutelage.models.surgery.skip import apply, skippable
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.studies.functions import read_lines
from tutelage.tasks import evaluate
from tutelage.training import Run

STUDENT = "resnet8x0.25"
"""A network with residual blocks, which the pairs of the conformance tests do not all have."""
BRIEF = {"tolerance": 1.0, "passes": 1}

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.1)
FREE = {"tolerance": 1.0, "passes": 1}

MakeRun = Callable[..., Run]


def network(depth: int = 14) -> Tapped:
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        return Tapped(make_model(f"resnet{depth}x0.25", num_classes=4, input_shape=(1, 8, 8)).module, [0.4], [0.3])


@pytest.fixture
def make_run(tiny_data: Data, on_cpu: Hardware) -> MakeRun:
    def make(*teachers: Tapped, **options: Any) -> Run:
        options = {"data": tiny_data, "student": network, "recipe": RECIPE, **options}
        return Run(teachers=teachers, hardware=on_cpu, **options)

    return make


@pytest.fixture(scope="module")
def dense() -> dict[str, Tensor]:
    """The state of the ResNet-14 that is trained once."""
    return {}


@pytest.fixture
def trained(dense: dict[str, Tensor], make_run: MakeRun) -> Tapped:
    """A trained ResNet-14 of six blocks."""
    model = network()
    if not dense:
        model = find("plain")(make_run(recipe=RECIPE.replace(epochs=20, lr=0.05)))
        dense.update(copy.deepcopy(model.module.state_dict()))
    model.module.load_state_dict(dense)
    return model.eval()


@pytest.fixture
def planted(make_run: MakeRun) -> Tapped:
    """A ResNet-14 whose second block of each stage returns its input, with the weights of a trained ResNet-8."""
    small = find("plain")(make_run(student=lambda: network(8), recipe=RECIPE.replace(epochs=8)))
    model = network()
    model.module.load_state_dict(small.module.state_dict(), strict=False)
    for stage in (1, 2, 3):
        norm = model.module.get_submodule(f"layer{stage}.1.bn2")
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)
    return model.eval()


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("score", ["information", "energy"])
def test_blocks_that_add_nothing_are_the_ones_removed(
    score: str, make_run: MakeRun, planted: Tapped, tiny_data: Data, state_of: Any, changed: Any
) -> None:
    before = state_of(planted)
    run = make_run(planted)
    settings = {"dense": "teacher", "retrain_epochs": 0, "score": score, **FREE}
    student = find("mi_pruning")(run, **settings)
    (stage,) = run.notes["stages"]
    scores = stage["scores"]
    for number in (1, 2, 3):  # a block that returns its input knows as much as the one before
        assert scores[f"layer{number}.0"] == scores[f"layer{number}.1"]
    assert stage["remaining"] == ["layer1.0", "layer2.0", "layer3.0"]
    assert torch.equal(student.eval()(pixels(tiny_data)), planted(pixels(tiny_data)))
    assert parameters(student) == parameters(network(8))
    assert run.fits == []
    assert changed(before, state_of(planted)) == set()
    last = find("mi_pruning")(make_run(planted), survivor="last", **settings)
    assert applied_operations(last.module)[0]["units"] == ["layer1.0", "layer2.0", "layer3.0"]
    other = make_run(planted)
    find("mi_pruning")(other, choose="rank", **settings)
    assert other.notes["stages"][0]["remaining"] != stage["remaining"]


def test_without_removal_it_is_the_dense_network_bit_for_bit(make_run: MakeRun, state_of: Any, changed: Any) -> None:
    run = make_run()
    student = find("mi_pruning")(run, keep=1, passes=1)
    assert changed(state_of(student), state_of(find("plain")(make_run()))) == set()
    assert applied_operations(student.module) == []
    assert len(run.fits) == 1
    assert len(run.notes["stages"][0]["remaining"]) == 6


def test_whole_blocks_are_removed_and_the_network_is_trained_again(make_run: MakeRun) -> None:
    run, whole = make_run(), network()
    student = find("mi_pruning")(run, keep=0.6, **FREE)
    (stage,) = run.notes["stages"]
    removed = [unit for unit in stage["scores"] if unit not in stage["remaining"]]
    assert (len(removed), len(stage["remaining"])) == (2, 4)
    assert applied_operations(student.module) == [{"operation": "skip", "units": removed}]
    assert not any(
        name.startswith(tuple(f"{unit}." for unit in removed)) and "conv" in name
        for name in student.module.state_dict()
    )
    sizes = {unit: parameters(whole.module.get_submodule(unit)) for unit in removed}
    assert parameters(student) == parameters(whole) - sum(sizes.values())
    expected = remaining(list(stage["scores"].values()), 4)
    assert stage["remaining"] == [list(stage["scores"])[position] for position in expected]
    assert [len(fit.history) for fit in run.fits] == [4, 4]
    assert "accuracy_pruned" not in stage
    first, last = (run.fits[1].history[n]["learners"]["student"]["ce"] for n in (0, -1))
    assert last < first


def test_fewest_units_within_the_tolerance_remain(make_run: MakeRun, trained: Tapped, tiny_data: Data) -> None:
    run = make_run(trained)
    find("mi_pruning")(run, dense="teacher", tolerance=0.1, keep=0.1, passes=1, retrain_epochs=0)
    (stage,) = run.notes["stages"]
    scores, count = list(stage["scores"].values()), len(stage["remaining"])
    assert 1 < count < 6
    assert tiny_data.validation is not None

    def accuracy(number: int) -> float:
        smaller = copy.deepcopy(trained)
        names = [name for i, name in enumerate(stage["scores"]) if i not in remaining(scores, number)]
        apply(smaller.module, torch.zeros(2, 1, 8, 8), units=names)
        logits = run.predict(smaller, tiny_data.validation)  # type: ignore[arg-type]
        return float((logits.argmax(1) == tiny_data.validation.labels).float().mean())  # type: ignore[union-attr]

    whole = accuracy(6)
    assert stage["accuracy_before"] == pytest.approx(whole)
    assert stage["accuracy_pruned"] == pytest.approx(accuracy(count))
    assert accuracy(count) >= whole - 0.1 - 1e-6
    assert all(accuracy(number) < whole - 0.1 for number in range(1, count))


def test_stages(make_run: MakeRun, trained: Tapped) -> None:
    run = make_run(trained)
    student = find("mi_pruning")(run, dense="teacher", stages=5, keep=0.5, retrain_epochs=1, **FREE)
    stages = run.notes["stages"]
    assert [(len(stage["scores"]), len(stage["remaining"])) for stage in stages] == [(6, 3), (3, 2), (2, 1)]
    for one, other in pairwise(stages):
        assert one["remaining"] == list(other["scores"])
    assert [len(fit.history) for fit in run.fits] == [1] * 3
    assert skippable(student.module, torch.zeros(2, 1, 8, 8)) == stages[-1]["remaining"]


def test_soft_targets_are_those_of_the_dense_network(
    make_run: MakeRun, trained: Tapped, state_of: Any, changed: Any
) -> None:
    states = []
    for alpha in (0.0, 0.7):
        run = make_run(trained)
        states.append(state_of(find("mi_pruning")(run, dense="teacher", alpha=alpha, retrain_epochs=2, **FREE)))
        record = run.fits[0].history[-1]
        assert ("kd" in record["learners"]["student"]) == (alpha > 0)
        assert record["forward_passes"]["teacher"] == (48 if alpha else 0)
    assert changed(*states)


def test_every_option_changes_the_scores(make_run: MakeRun, trained: Tapped) -> None:
    run, units = make_run(), ["layer1.0", "layer3.1"]
    default = Scoring("information", "label", "upper", 0.0, True, 40, 1)
    others: list[dict[str, Any]] = [
        {"target": "prediction"},
        {"bounds": "lower"},
        {"bounds": "mixed"},
        {"variance": 3.0},
        {"pool": False},
        {"samples": 20},
        {"passes": 2},
        {"score": "energy"},
    ]
    results = [default(run, trained, units), *(replace(default, **other)(run, trained, units) for other in others)]
    assert len({tuple(scores) for scores, _ in results}) == 1 + len(others)
    assert results[0] == default(run, trained, units)  # it draws the same samples again
    assert all(len(scores) == 2 and 0 < entropy <= math.log(4) + 1e-9 for scores, entropy in results)


def test_the_setting_of_the_code_is_refused_as_saturated(make_run: MakeRun, trained: Tapped, refused: Any) -> None:
    settings = {"dense": "teacher", "pool": False, "variance": 1e-3, **FREE}
    for bounds in ("upper", "mixed"):
        with refused("within 1 % of the entropy of the classes, 1.39 nats", "variance=0"):
            find("mi_pruning")(make_run(trained), bounds=bounds, **settings)


def test_plain_layers(make_run: MakeRun, refused: Any) -> None:
    def make() -> Tapped:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
        return Tapped(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)), [0.4], [0.3])

    with refused("Sequential has no residual block or dense layer", "plain=True"):
        find("mi_pruning")(make_run(student=make))
    run = make_run(student=make)
    student = find("mi_pruning")(run, plain=True, retrain_epochs=1, **FREE)
    assert list(run.notes["stages"][0]["scores"]) == ["2", "4", "6"]
    assert parameters(student) == parameters(make()) - (9 * 16 + 4)


def test_measured_information_rises_and_planted_blocks_are_removed() -> None:
    """The results of ``experiments.mi_pruning``, whose trainings are too long for a test."""
    lines = read_lines(Path(__file__).parents[2] / "docs" / "results" / "mi_pruning.jsonl")
    measured = {(line["condition"], line["row"], line["seed"]): line["measured"] for line in lines}
    seeds = {seed for _, _, seed in measured}
    assert len(seeds) >= 3
    for seed in seeds:
        assert 0 < measured["trained", "cluster", seed]["rise"] < measured["trained", "cluster", seed]["entropy"]
        whole = measured["planted", "dense", seed]["accuracy"]
        assert measured["planted", "cluster", seed]["accuracy"] == whole
        assert measured["planted", "random", seed]["accuracy"] < whole - 0.3


def test_a_run_is_opened_again(tiny_data: Data, tmp_path: Path) -> None:
    settings = {**FREE, "keep": 0.6, "stages": 2}
    options = {"method": "mi_pruning", "epochs": 2, "batch_size": 16, "device": "cpu", "settings": settings}
    result = tutelage.train("resnet14x0.25", tiny_data, **options, out=tmp_path / "run")  # type: ignore[arg-type]
    opened = open_model(str(tmp_path / "run"), tiny_data)
    assert [len(entry["units"]) for entry in applied_operations(opened.module)] == [2, 1]
    assert torch.equal(opened(pixels(tiny_data)), result.model(pixels(tiny_data)))
    assert result.metrics["cost"]["parameters"] == parameters(opened) < parameters(network())
    assert len(result.metrics["notes"]["stages"]) == 2
    assert evaluate(opened, tiny_data)["accuracy"] == result.metrics["test"]["accuracy"]


def test_unsuitable_runs_are_refused(
    make_run: MakeRun, tiny_data: Data, tiny_model: Callable[..., Tapped], trained: Tapped, refused: Any
) -> None:
    with refused("held-out split", "--validation 0.1", "tolerance=1"):
        find("mi_pruning")(make_run(data=replace(tiny_data, validation=None)))
    with refused("TinyNet has no residual block", "resnet20"):
        find("mi_pruning")(make_run(student=tiny_model))
    with refused("dense=teacher", "ResNet", "dense=trained"):
        find("mi_pruning")(make_run(network(8)), dense="teacher")
    with refused("needs a teacher"):
        find("mi_pruning")(make_run(), dense="teacher")
    invalid: list[dict[str, Any]] = [
        {"keep": 0},
        {"stages": 0},
        {"samples": 1},
        {"passes": 0},
        {"choose": "best"},
        {"variance": -1},
    ]
    for setting in invalid:
        with refused(*setting):
            find("mi_pruning")(make_run(trained), **setting)
