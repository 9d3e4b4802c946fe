"""The clustering task."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data import Data, NoAugmentation, Split
from tutelage.data.targets import MultiLabel
from tutelage.errors import TutelageError
from tutelage.evaluation.embeddings import embedder, embeddings
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, evaluate, find_task

CLASSES = 5


class CornerEmbedding(nn.Module):
    """Embeddings (B, 5) or wider without weights, computed from the corner pixel that encodes the class."""

    def __init__(self, scale: float = 2.0, width: int = 8) -> None:
        super().__init__()
        self.scale, self.width = scale, width

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.one_hot((x[:, 0, 0, 0] * 255).round().long() // 10, self.width).float()


class WithoutFirstColumn(nn.Module):
    """Columns without the first, which encodes the class."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def data_of(labels: Tensor) -> Data:
    """4x4 images whose corner pixel is ten times the class; the other pixels are random."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (len(labels), 4, 4, 1), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = (labels.clamp(min=0) * 10).to(torch.uint8)
    split = Split.of(images, labels)
    return Data("coded", tuple("abcde"), train=split, test=split, views=NoAugmentation())


def test_embeddings_equal_to_the_classes_are_clustered_perfectly() -> None:
    result = evaluate(CornerEmbedding(), data_of(torch.arange(200) % CLASSES), task="clustering")
    assert result["samples"] == 200
    assert result["nmi"] == pytest.approx(1)
    assert result["ari"] == 1
    assert result["matched_accuracy"] == 1
    assert result["multicut_clusters"] == CLASSES
    assert result["multicut_nmi"] == pytest.approx(1)
    assert result["multicut_ari"] == 1
    assert result["multicut_vi_split"] == result["multicut_vi_merge"] == 0
    # 10 pairs of classes of 40 samples each, at squared distance 8: cutting a pair costs -(8 - 2)
    assert result["multicut_objective"] == pytest.approx(-6 * 10 * 40 * 40)


def test_random_embeddings_have_no_mutual_information() -> None:
    data = data_of(torch.arange(500) % CLASSES)
    result = evaluate(nn.Sequential(nn.Flatten(), WithoutFirstColumn()), data, task="clustering")
    assert result["nmi"] < 0.03
    assert abs(result["ari"]) < 0.03
    assert result["matched_accuracy"] < 0.3


def test_metrics_do_not_depend_on_the_order_of_samples() -> None:
    data = data_of(torch.arange(300) % CLASSES)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    reordered = Split.of(data.test.inputs[order], data.test.labels[order])
    network = nn.Flatten()
    first, second = (
        evaluate(network, replace(data, test=split), task="clustering") for split in (data.test, reordered)
    )
    assert first == second == evaluate(network, data, task="clustering")


def test_unlabelled_samples_are_ignored() -> None:
    labels = torch.arange(200) % CLASSES
    partly_labelled = data_of(labels)
    half_unlabelled = Split.of(partly_labelled.test.inputs, labels.where(torch.arange(200) < 100, -1))
    labelled_half = Split.of(partly_labelled.test.inputs[:100], labels[:100])
    results = [
        evaluate(nn.Flatten(), replace(partly_labelled, test=split), task="clustering")
        for split in (half_unlabelled, labelled_half)
    ]
    assert results[0] | {"samples": 100} == results[1]


def test_unlabelled_split_has_no_metrics() -> None:
    partly_labelled = data_of(torch.arange(20) % CLASSES)
    part = replace(partly_labelled, test=Split.of(partly_labelled.test.inputs, torch.full((20,), -1)))
    result = evaluate(CornerEmbedding(), part, task="clustering")
    assert result.pop("samples") == 20
    assert set(result.values()) == {None}
    score = find_task("clustering").score(CornerEmbedding(), part.test, part, Compute())
    assert math.isnan(score)


def test_multicut_uses_at_most_1000_samples_from_the_whole_split() -> None:
    data = data_of((torch.arange(2500) % CLASSES).sort().values)
    result = evaluate(CornerEmbedding(), data, task="clustering")
    assert result["multicut_clusters"] == CLASSES
    assert -6 * 10 * 200 * 200 * 1.01 < result["multicut_objective"] <= -6 * 10 * 199 * 200


def test_embedding_of_a_classifier_is_the_input_of_its_last_layer() -> None:
    data = data_of(torch.arange(40) % CLASSES)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    assert embeddings(network, data.test, data, "cpu").vectors.shape == (40, 7)


@pytest.mark.parametrize("width", [3, 9])
def test_embedding_of_a_network_without_a_classifier_is_its_output(width: int) -> None:
    data = data_of(torch.arange(40) % CLASSES)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, width))
    vectors = embeddings(network, data.test, data, "cpu").vectors
    expected = network(data.test.inputs.movedim(3, 1).float() / 255)
    assert torch.allclose(vectors.sort(0).values, expected.sort(0).values, atol=1e-6)


def test_named_embedding_is_used() -> None:
    data = data_of(torch.arange(40) % CLASSES)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    assert embeddings(Tapped(network, roles={"embedding": ""}), data.test, data, "cpu").vectors.shape == (40, CLASSES)
    assert embeddings(Tapped(network, roles={"embedding": "1"}), data.test, data, "cpu").vectors.min() < 0
    named_embedder = embedder(Tapped(network, roles={"embedding": "1"}), data)
    assert named_embedder.manual_roles == {"embedding"}


def test_evaluation_changes_neither_the_network_nor_the_random_state() -> None:
    data = data_of(torch.arange(40) % CLASSES)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 7), nn.BatchNorm1d(7))
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    first = evaluate(network, data, task="clustering")
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert first == evaluate(network, data, task="clustering")


def test_score_is_the_main_metric_and_the_metric_of_teacher_comparison() -> None:
    data = data_of(torch.arange(100) % CLASSES)
    task = find_task("clustering")
    result = task.evaluate(nn.Flatten(), data.test, data, Compute(), teacher=CornerEmbedding())
    assert task.main_metric == "nmi"
    assert result["teacher_nmi"] == pytest.approx(1)
    assert result["nmi"] == task.score(nn.Flatten(), data.test, data, Compute())


@pytest.mark.parametrize("name", ["clustering", "few_shot"])
def test_outputs_without_one_vector_per_sample_are_refused(name: str, tiny_data: Data) -> None:
    task = find_task(name)
    for outputs, part in (
        (Outputs(torch.zeros(2, 4)), "returns no embedding"),
        (Outputs(None, {"embedding": torch.zeros(2, 3, 4, 4)}), r"shape \(2, 3, 4, 4\)"),
    ):
        with pytest.raises(TutelageError, match=part) as error:
            task.check("the student", outputs, tiny_data)
        assert "\n" not in str(error.value)
    task.check("the student", Outputs(None, {"embedding": torch.zeros(2, 3)}), tiny_data)
    task.check("the teacher", Outputs(None, {"stage1": torch.zeros(2, 3, 4, 4)}), tiny_data)


@pytest.mark.parametrize("name", ["clustering", "few_shot"])
def test_data_with_other_targets_are_refused(name: str) -> None:
    images = torch.zeros(8, 4, 4, 1, dtype=torch.uint8)
    split = Split.of(images, torch.ones(8, 2), targets=MultiLabel())
    data = Data("many", ("a", "b"), train=split, test=split, views=NoAugmentation())
    with pytest.raises(TutelageError, match="one class for each sample"):
        find_task(name).check_data(data)
