"""The few-shot task."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data import Data, NoAugmentation, Split
from tutelage.tasks import Compute, evaluate, find_task
from tutelage.tasks import few_shot as module


@pytest.fixture(autouse=True)
def fewer_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use 60 episodes instead of 600."""
    monkeypatch.setattr(module, "EPISODES", 60)


class CornerEmbedding(nn.Module):
    """Embeddings of a constant and a one-hot class, which the corner pixel encodes."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 + F.one_hot((x[:, 0, 0, 0] * 255).round().long() // 10, 20).float()


class WithoutCorner(nn.Module):
    """The random pixels without the corner."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, 1:]


def data_of(labels: Tensor) -> Data:
    """4x4 images whose corner pixel is ten times the class; the other pixels are random."""
    images = torch.randint(0, 255, (len(labels), 4, 4, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 0, 0, 0] = (labels.clamp(min=0) * 10).to(torch.uint8)
    split = Split.of(images, labels)
    return Data("coded", tuple("abcdefgh"), train=split, test=split, views=NoAugmentation())


def test_embeddings_equal_to_the_classes_are_classified_perfectly() -> None:
    result = evaluate(CornerEmbedding(), data_of(torch.arange(240) % 8), task="few_shot")
    for shots in (1, 5):
        for name in ("accuracy", "linear", "graph"):
            assert result[f"{name}_{shots}_shot"] == 1
            assert result[f"{name}_{shots}_shot_half_width"] == 0
        assert result[f"gain_{shots}_shot"] == 0


@pytest.mark.parametrize(("classes", "class_count"), [(8, 5), (3, 3), (2, 2)])
def test_random_embeddings_have_chance_accuracy(classes: int, class_count: int) -> None:
    result = evaluate(WithoutCorner(), data_of(torch.arange(40 * classes) % classes), task="few_shot")
    for shots in (1, 5):
        assert result[f"accuracy_{shots}_shot"] == pytest.approx(1 / class_count, abs=0.08)
        assert 0 < result[f"accuracy_{shots}_shot_half_width"] < 0.05


def test_metrics_do_not_depend_on_the_order_of_samples() -> None:
    data = data_of(torch.arange(160) % 8)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    reordered = Split.of(data.test.inputs[order], data.test.labels[order])
    results = [evaluate(nn.Flatten(), replace(data, test=split), task="few_shot") for split in (data.test, reordered)]
    assert results[0] == results[1] == evaluate(nn.Flatten(), data, task="few_shot")


def test_episode_size_follows_class_size_and_too_few_samples_give_none() -> None:
    small = evaluate(CornerEmbedding(), data_of(torch.arange(12) % 4), task="few_shot")  # three samples per class
    assert small["accuracy_1_shot"] == 1
    assert small["accuracy_5_shot"] is small["purity_5_shot"] is None
    single = data_of(torch.arange(4))
    result = evaluate(CornerEmbedding(), single, task="few_shot")
    assert result.pop("samples") == 4
    assert set(result.values()) == {None}
    assert math.isnan(find_task("few_shot").score(CornerEmbedding(), single.test, single, Compute()))


def test_class_without_queries_is_excluded_from_episodes() -> None:
    labels = torch.cat([torch.arange(60) % 3, torch.tensor([3])])
    assert evaluate(CornerEmbedding(), data_of(labels), task="few_shot")["accuracy_1_shot"] == 1


def test_score_is_the_main_metric_and_the_metric_of_teacher_comparison() -> None:
    data, task = data_of(torch.arange(160) % 8), find_task("few_shot")
    result = task.evaluate(nn.Flatten(), data.test, data, Compute(), teacher=CornerEmbedding())
    assert task.main_metric == "accuracy_1_shot"
    assert result["teacher_accuracy_1_shot"] == 1
    assert result["accuracy_1_shot"] == pytest.approx(task.score(nn.Flatten(), data.test, data, Compute()))
    assert {*task.metrics} == {*result} - {"samples"}
