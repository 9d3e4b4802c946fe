"""Few-shot classification of new classes by embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.data import Data, Split
from tutelage.evaluation.embeddings import Embeddings, embeddings
from tutelage.evaluation.episodes import Episodes, evaluate_alone, evaluate_episodes, sample_episodes
from tutelage.evaluation.few_shot_classifiers import nearest_mean
from tutelage.evaluation.interpolation import prepared
from tutelage.evaluation.json_numbers import json_number
from tutelage.tasks._embeddings import EmbeddingTask
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.task import Compute

EPISODES = 600
MAX_WAYS = 5
MAX_QUERIES = 15
SHOTS = (1, 5)
SEED = 0
_OF_EPISODES = {
    "accuracy": "nearest_mean",
    "linear": "without_graph",
    "graph": "accuracy",
    "gain": "gain",
    "inductive": "inductive",
    "inductive_graph": "inductive_graph",
}
"""Metrics, and their names in the results of ``evaluate_episodes``."""


def _metrics(shots: int) -> dict[str, Metric | Curve]:
    """The metrics for one number of shots."""
    metrics: dict[str, Metric | Curve] = {}
    for name, title in {
        "accuracy": "accuracy, nearest mean",
        "linear": "accuracy, logistic regression",
        "graph": "accuracy, logistic regression with graph",
        "inductive": "accuracy, one query at a time",
        "inductive_graph": "accuracy, one query at a time with graph",
    }.items():
        metrics[f"{name}_{shots}_shot"] = Metric(f"{shots}-shot {title}", "higher", percent=True)
        metrics[f"{name}_{shots}_shot_half_width"] = Metric(
            f"{shots}-shot {title}: half-width of the 95 % interval", None, percent=True
        )
    metrics[f"gain_{shots}_shot"] = Metric(f"{shots}-shot accuracy gained by the graph", None)
    metrics[f"gain_{shots}_shot_half_width"] = Metric(
        f"{shots}-shot accuracy gain: half-width of the 95 % interval", None
    )
    metrics[f"purity_{shots}_shot"] = Metric(f"purity of the graphs ({shots}-shot)", "higher", percent=True)
    return metrics


class FewShot(EmbeddingTask):
    """Few-shot classification: episodes of at most 5 classes, with 1 or 5 labelled samples and 15 queries per class.

    Queries are classified all together (transductive), by the nearest mean and by logistic regression with and without
    a graph of all samples of the episode; and one at a time (inductive), by logistic regression. The embeddings (B, D)
    are frozen. Classes are those of the evaluated split; the network need not have been trained on them. The episodes
    have a fixed seed. Small splits result in fewer classes or queries per episode, and in no accuracy if fewer than
    two classes have a labelled sample and a query.
    """

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {name: metric for shots in SHOTS for name, metric in _metrics(shots).items()}
        | {"teacher_accuracy_1_shot": Metric("the teacher's 1-shot accuracy, nearest mean", None, percent=True)}
    )

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The 1-shot accuracy of the nearest mean, on the same episodes as ``evaluate``."""
        student_embeddings = embeddings(model, split, data, compute.device)
        episodes = _episodes(student_embeddings.labels, SHOTS[0])
        if episodes is None:
            return math.nan
        support, queries = prepared(
            student_embeddings.vectors[episodes.support], student_embeddings.vectors[episodes.queries]
        )
        logits = nearest_mean(support, episodes.support_targets, queries, episodes.ways)
        return float((logits.argmax(-1) == episodes.query_targets).double().mean())

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics for 1 and 5 shots."""
        student_embeddings = embeddings(model, split, data, compute.device)
        result: dict[str, Any] = {"samples": len(split)}
        for shots in SHOTS:
            result |= _few_shot(student_embeddings, shots)
        if teacher is not None:
            teacher_embeddings = embeddings(teacher, split, data, compute.device)
            result["teacher_accuracy_1_shot"] = _few_shot(teacher_embeddings, 1)["accuracy_1_shot"]
        return result


def _few_shot(student_embeddings: Embeddings, shots: int) -> dict[str, float | None]:
    episodes = _episodes(student_embeddings.labels, shots)
    if episodes is None:
        return dict.fromkeys(_metrics(shots))
    values = evaluate_episodes(student_embeddings.vectors, episodes) | evaluate_alone(
        student_embeddings.vectors, episodes
    )
    result: dict[str, float | None] = {}
    for name, key in _OF_EPISODES.items():
        result[f"{name}_{shots}_shot"] = json_number(values[key])
        result[f"{name}_{shots}_shot_half_width"] = json_number(values[f"{key}_half_width"])
    return result | {f"purity_{shots}_shot": json_number(values["purity"])}


def _episodes(labels: Tensor, shots: int) -> Episodes | None:
    """The largest episodes that a split allows; ``None`` if it has fewer than two classes that are large enough."""
    counts = torch.bincount(labels).sort(descending=True).values if len(labels) else labels
    ways = min(MAX_WAYS, int((counts > shots).sum()))
    if ways < 2:
        return None
    queries = min(MAX_QUERIES, int(counts[ways - 1]) - shots)
    generator = torch.Generator().manual_seed(SEED)
    return sample_episodes(labels, EPISODES, generator, ways=ways, shots=shots, queries=queries)


task = FewShot()
