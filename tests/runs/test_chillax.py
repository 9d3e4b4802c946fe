"""The method chillax: its network, what imprecise labels train, the file of its weights, and that it does its job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.nets import mlp
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, Imprecise, open_data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.training import Run

BRIEF = {"hierarchy": {"flat or rows": ["a", "b"], "others": ["c", "d"]}}  # for the conformance tests
GROUPS = {"round": [0, 2, 3, 5, 6, 8, 9], "straight": [1, 4, 7]}  # digits of similar shapes


@pytest.fixture
def run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Run]:
    def make(data: Data = tiny_data, **recipe: Any) -> Run:
        options = {"epochs": 1, "batch_size": 16, "lr": 0.05, "weight_decay": 0.0} | recipe
        return Run(data, lambda: tiny_model(1), recipe=Recipe(**options), hardware=on_cpu, seed=3)

    return make


def test_logits_are_log_probabilities_of_the_classes(run: Any, tiny_data: Data) -> None:
    training = run()
    student = find("chillax")(training, **BRIEF)
    nodes = training.predict(student, tiny_data.test, ("nodes",)).double()
    logits = training.predict(student, tiny_data.test).double()
    assert nodes.shape == (16, 7)
    p = nodes.sigmoid()  # a, b, c, d, two groups, root
    expected = torch.stack([p[:, leaf] * p[:, group] * p[:, 6] for leaf, group in enumerate((4, 4, 5, 5))], 1)
    assert torch.allclose(logits.exp(), expected, atol=1e-6)


def test_labels_of_the_root_train_nothing_but_the_root(run: Any, tiny_data: Data) -> None:
    train = replace(tiny_data.train, labels=torch.full((48, 4), 0.25))
    training = run(replace(tiny_data, train=train))
    student = find("chillax")(training, **BRIEF)
    classes = training.predict(student, tiny_data.test)
    assert (classes == classes[:, :1]).all()  # as at the start
    assert (classes > 3 * torch.tensor(0.5).log()).all()  # the root has become more probable


def test_imprecise_labels_train_the_groups_alone(run: Any, tiny_data: Data) -> None:
    labels = torch.tensor([[0.5, 0.5, 0, 0], [0.0, 0, 0.5, 0.5]])[tiny_data.train.labels // 2]
    training = run(replace(tiny_data, train=replace(tiny_data.train, labels=labels)), epochs=10)
    student = find("chillax")(training, **BRIEF)
    probabilities = training.predict(student, tiny_data.test).softmax(1)
    assert (probabilities[:, 0] == probabilities[:, 1]).all()
    assert (probabilities[:, 2] == probabilities[:, 3]).all()
    assert float((probabilities.argmax(1) // 2 == tiny_data.test.labels // 2).float().mean()) > 0.7


def test_run_is_saved_with_its_hierarchy_and_evaluated_by_it(tiny_data: Data, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(BRIEF["hierarchy"]))
    config = Config(
        student="resnet8x0.25", method="chillax", epochs=1, batch_size=16, device="cpu", precision="float32", workers=0
    ).replace(settings={"hierarchy": str(file)})
    data = Imprecise(str(file), 0.5)(tiny_data)
    result = execute(config, tmp_path / "run", overrides=Overrides(data=data))
    predicted = result.model(data.test.inputs.permute(0, 3, 1, 2) / 255).argmax(1)  # type: ignore[union-attr]
    distance = [0 if p == y else 2 if p // 2 == y // 2 else 4 for p, y in zip(predicted, data.test.labels, strict=True)]
    assert result.metrics["test"]["hierarchical_distance"] == pytest.approx(sum(distance) / 16)
    again = execute(config, tmp_path / "run", overrides=Overrides(data=data))  # read from the folder
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(again.model(images), result.model(images))


def test_digits_are_recognised_although_most_labels_are_groups(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text("round: [0, 2, 3, 5, 6, 8, 9]\nstraight: [1, 4, 7]\n")
    digits = open_data("digits")
    digits = replace(digits, views=digits.modality.unaugmented)
    data = Imprecise(str(file), 0.9, seed=1)(digits)
    assert float((data.train.labels.amax(1) < 1).float().mean()) == pytest.approx(0.9, abs=0.03)

    def train(name: str, data: Data, **settings: Any) -> float:
        recipe = Recipe(epochs=60, batch_size=128, lr=0.1, schedule="cosine")
        hardware = Hardware(device="cpu", precision="float32", workers=0)
        run = Run(data, lambda: Tapped(mlp(10, 64, 64), *data.mean_std), recipe=recipe, hardware=hardware)
        return float(accuracy(run.predict(find(name)(run, **settings), data.test), data.test.labels))

    random_leaves = torch.multinomial(data.train.labels, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    guessed = replace(data, train=replace(data.train, labels=random_leaves))
    assert train("chillax", data, hierarchy=GROUPS) > train("plain", guessed) + 0.3


@pytest.mark.parametrize(
    ("hierarchy", "pieces"),
    [
        ({"left": ["a", "b"], "right": ["c"]}, ("'d'", "missing", "groups")),
        ({"left": ["a", "b"], "right": ["c", "d", "e"]}, ("unknown class 'e'",)),
        ("nowhere.yaml", ("nowhere.yaml", "No such file")),
        ("tree.txt", ("'tree.txt'", ".yaml")),
    ],
)
def test_hierarchy_that_does_not_fit_is_refused(hierarchy: Any, pieces: Any, run: Any, refused: Any) -> None:
    with refused(*pieces):
        find("chillax")(run(), hierarchy=hierarchy)
