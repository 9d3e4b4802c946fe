"""Embeddings that form clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from tutelage.data.data import Data, Split
from tutelage.evaluation.clustering import ari, k_means, matched_accuracy, nmi, variation_of_information
from tutelage.evaluation.embeddings import Embeddings, embeddings
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.multicut import cut_costs, multicut, multicut_objective, pair_distances
from tutelage.tasks._embeddings import EmbeddingTask
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.task import Compute

MAX_CUT_SAMPLES = 1000
"""The largest number of samples clustered by multicut, whose memory and time grow with its square."""


class Clustering(EmbeddingTask):
    """Embeddings (B, D) whose clusters are the classes: k-means, and correlation clustering (minimum-cost multicut).

    Clustering does not read the labels; k-means is given the number of classes of the split, multicut is not. Samples
    without a class are left out. Multicut uses one threshold for all networks: pairs at a squared distance below
    2, half-way between the margins of the absolute triplet loss, attract each other. Its metrics are hardly meaningful
    for embeddings of another scale.
    """

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "nmi": Metric("normalised mutual information of k-means and classes", "higher", percent=True),
            "ari": Metric("adjusted Rand index of k-means and classes", "higher"),
            "matched_accuracy": Metric("accuracy of k-means matched with classes", "higher", percent=True),
            "multicut_clusters": Metric("clusters that multicut finds", None),
            "multicut_nmi": Metric("normalised mutual information of multicut and classes", "higher", percent=True),
            "multicut_ari": Metric("adjusted Rand index of multicut and classes", "higher"),
            "multicut_vi_split": Metric("bits by which multicut splits classes", "lower"),
            "multicut_vi_merge": Metric("bits by which multicut merges classes", "lower"),
            "multicut_objective": Metric("objective of multicut", None),
            "teacher_nmi": Metric("the teacher's normalised mutual information", None, percent=True),
        }
    )

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The normalised mutual information of k-means."""
        value = _by_k_means(embeddings(model, split, data, compute.device))["nmi"]
        return math.nan if value is None else value

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics; those of multicut use at most 1,000 samples, spread over the split."""
        samples = embeddings(model, split, data, compute.device)
        result: dict[str, Any] = {
            "samples": len(split),
            **_by_k_means(samples),
            **_by_multicut(samples.spread(MAX_CUT_SAMPLES)),
        }
        if teacher is not None:
            result["teacher_nmi"] = _by_k_means(embeddings(teacher, split, data, compute.device))["nmi"]
        return result


def _by_k_means(samples: Embeddings) -> dict[str, float | None]:
    if not len(samples.labels):
        return dict.fromkeys(("nmi", "ari", "matched_accuracy"))
    clusters = k_means(samples.vectors, len(torch.unique(samples.labels)))
    return {
        "nmi": json_number(nmi(samples.labels, clusters)),
        "ari": json_number(ari(samples.labels, clusters)),
        "matched_accuracy": json_number(matched_accuracy(samples.labels, clusters)),
    }


def _by_multicut(samples: Embeddings) -> dict[str, float | None]:
    if not len(samples.labels):
        return dict.fromkeys(name for name in task.metrics if name.startswith("multicut_"))
    costs = cut_costs(pair_distances(samples.vectors))
    clusters = multicut(costs)
    split, merge = variation_of_information(samples.labels, clusters)
    return {
        "multicut_clusters": len(torch.unique(clusters)),
        "multicut_nmi": json_number(nmi(samples.labels, clusters)),
        "multicut_ari": json_number(ari(samples.labels, clusters)),
        "multicut_vi_split": json_number(split),
        "multicut_vi_merge": json_number(merge),
        "multicut_objective": json_number(multicut_objective(costs, clusters)),
    }


task = Clustering()
