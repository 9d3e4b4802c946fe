"""The method clean_labels: it removes more wrong labels than right ones, resumes, and saves what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import tutelage
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.methods import find
from tutelage.methods.clean_labels import doubted_labels
from tutelage.models.tapped import Tapped
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

BRIEF = {"folds": 2}  # for the conformance tests
FIELDS: dict[str, Any] = {"epochs": 15, "validation": 0.0, "device": "cpu", "lr": 0.05, "seed": 1}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cleaned(noise: str | None, **settings: Any) -> tuple[tutelage.api.Result, Tensor]:  # type: ignore[name-defined]
    fields = FIELDS | {"noise": noise}
    result = tutelage.train(mlp, "digits", method="clean_labels", settings={"folds": 3, **settings}, **fields)
    return result, load_data(Config(data="digits", **fields)).train.corrupted


@pytest.mark.parametrize(("noise", "least"), [("0.3", 0.98), ("pair:0.3", 0.9)])
def test_wrong_labels_are_found(noise: str, least: float) -> None:
    result, corrupted = cleaned(noise)
    wrong = result.samples["wrong"]
    assert roc_auc_score(corrupted.numpy(), wrong.numpy()) > least
    doubted = wrong > 0.5
    assert corrupted[doubted].float().mean() > 0.85  # three times the share among all labels
    assert result.metrics["notes"]["doubted"] == int(doubted.sum())
    assert 0.1 < result.metrics["notes"]["noise_rate"] < 0.4


def test_correct_labels_are_hardly_doubted() -> None:
    result, corrupted = cleaned(None)
    assert int((result.samples["wrong"] > 0.5).sum()) < 0.01 * len(corrupted)
    assert result.metrics["notes"]["noise_rate"] < 0.02


class Recorded(Run):
    """Records the training split of each fit."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.splits: list[Any] = []

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        self.splits.append(data.train)
        return super().fit(*learners, data=data, **options)


@pytest.fixture
def trained(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Recorded]:
    def go(data: Data = tiny_data, **settings: Any) -> Recorded:
        recipe = Recipe(epochs=4, batch_size=8, lr=0.1)
        student = lambda: tiny_model(int(torch.randint(9999, ())))  # noqa: E731
        run = Recorded(data, student, recipe=recipe, hardware=on_cpu, seed=2)
        find("clean_labels")(run, folds=2, **settings)
        return run

    return go


@pytest.fixture
def noisy(tiny_data: Data) -> Data:
    labels = tiny_data.train.labels.clone()
    labels[:8] = (labels[:8] + 1) % 4
    return replace(tiny_data, train=replace(tiny_data.train, labels=labels))


def test_the_student_is_trained_on_the_labels_that_are_not_doubted(trained: Any, noisy: Data) -> None:
    run = trained(noisy, repair="remove")
    doubted = doubted_labels(run.samples["wrong"], noisy.train.labels)
    assert doubted.any()
    assert torch.equal(run.splits[-1].labels, noisy.train.labels.masked_fill(doubted, -1))
    assert torch.equal(run.splits[-1].index, noisy.train.index)  # the same batches as other methods


def test_doubted_labels_may_be_replaced(trained: Any, noisy: Data) -> None:
    run = trained(noisy, repair="replace")
    doubted = doubted_labels(run.samples["wrong"], noisy.train.labels)
    assert torch.equal(run.splits[-1].labels, noisy.train.labels.where(~doubted, run.samples["suggested"]))


def test_samples_without_a_label_are_left_out_and_verified_labels_are_not_doubted(trained: Any, noisy: Data) -> None:
    labels = noisy.train.labels.clone()
    labels[40:] = -1
    trusted = torch.zeros(48, dtype=torch.bool)
    trusted[:4] = True
    run = trained(replace(noisy, train=replace(noisy.train, labels=labels, trusted=trusted)))
    assert all(int(split.index.max()) < 40 for split in run.splits[:-1])
    assert (run.splits[-1].labels[40:] == 0).all()  # soft labels of 0 are none
    assert torch.equal(run.splits[-1].labels[:4], nn.functional.one_hot(labels[:4], 4).float())
    assert run.samples["wrong"][40:].isnan().all()
    assert (run.samples["suggested"][40:] == -1).all()
    assert (run.samples["wrong"][:4] == 0).all()


def test_softened_labels_are_the_distributions_of_the_true_classes(trained: Any, noisy: Data) -> None:
    run = trained(noisy)
    soft, labels = run.splits[-1].labels, noisy.train.labels
    agree = soft.sum(1) > 0.5
    assert 0 < int(agree.sum()) < 48
    torch.testing.assert_close(soft.sum(1), agree.float())
    assert torch.equal(run.splits[-1].index, noisy.train.index)
    other = soft.scatter(1, labels[:, None], -1.0).argmax(1)
    assert torch.equal(other[agree], run.samples["suggested"][agree])


def test_softened_labels_are_closer_to_the_true_ones() -> None:
    fields = FIELDS | {"noise": "pair:0.3"}
    data = load_data(Config(data="digits", **fields))
    run = Recorded(data, lambda: Tapped(mlp(), *data.mean_std), recipe=Recipe(epochs=15, lr=0.05), seed=1)
    find("clean_labels")(run, folds=3)
    true = data.train.clean_labels[:, None]
    soft, wrong = run.splits[-1].labels, data.train.corrupted
    agree, right = soft.sum(1) > 0.5, soft.gather(1, true)[:, 0]
    assert agree.float().mean() > 0.8
    assert right[wrong & agree].mean() > 0.7  # that of the labels as they are: 0
    assert right[~wrong & agree].mean() > 0.9


def test_no_class_loses_all_its_labels() -> None:
    wrong = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.95])
    assert doubted_labels(wrong, torch.tensor([0, 0, 1, 1, 2])).tolist() == [True, False, True, False, False]


def test_soft_labels_are_refused(trained: Any, tiny_data: Data, refused: Any) -> None:
    soft = nn.functional.one_hot(tiny_data.train.labels, 4).float()
    with refused("clean_labels needs class numbers", "argmax"):
        trained(replace(tiny_data, train=replace(tiny_data.train, labels=soft)))


def test_results_for_each_sample_are_saved_and_read(tmp_path: Path, refused: Any) -> None:
    def go() -> Any:
        fields = FIELDS | {"epochs": 2}
        return tutelage.train(
            "resnet8x0.5", "digits", method="clean_labels", settings={"folds": 2}, out=tmp_path, per_class=12, **fields
        )

    first, second = go(), go()
    assert {*first.samples} == {*second.samples} >= {"wrong", "suggested", "fold", "differences"}
    assert all(torch.equal(first.samples[name], second.samples[name]) for name in first.samples)
    file = tmp_path / "samples.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with refused(file, "is damaged or was replaced"):
        go()
    file.unlink()
    with refused("cannot read", file):
        go()
