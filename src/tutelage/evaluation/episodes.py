"""Few-shot classification of frozen features, with a graph over the samples of an episode.

Hu, Gripon, Pateux, "Graph-Based Interpolation of Feature Vectors for Accurate Few-Shot Classification", ICPR 2020,
arXiv 2001.09849; constants from the authors' code, yhu01/transfer-sgc.

An episode has ``ways`` classes, a few labelled samples of each class (the support, n in total) and samples to classify
(the queries, Q in total). The classes of queries are used only for accuracies and for the purity of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.errors import TutelageError
from tutelage.evaluation.few_shot_classifiers import Classifier, logistic_regression, nearest_mean
from tutelage.evaluation.interpolation import (
    NEIGHBOURS,
    interpolated,
    most_neighbours,
    neighbour_graph,
    prepared,
    prepared_alone,
    purity,
)

AT_ONCE = 100  # episodes evaluated in one batch, which bounds memory
ALONE = 100  # episodes in ``evaluate_alone``


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """E episodes, as indices into a split.

    Attributes:
        support: (E, n) int64 indices of the support samples.
        queries: (E, Q) int64 indices of the queries; no sample occurs twice in an episode.
        support_targets: (n,) int64, the classes of the support within the episode, 0 .. ways - 1.
        query_targets: (Q,) int64, the classes of the queries within the episode.
        ways: number of classes per episode.
    """

    support: Tensor
    queries: Tensor
    support_targets: Tensor
    query_targets: Tensor
    ways: int


def sample_episodes(
    labels: Tensor,
    episodes: int,
    generator: torch.Generator,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int | Sequence[int] = 15,
) -> Episodes:
    """Sample classes uniformly, and then samples of each class uniformly, both without replacement.

    Args:
        labels: (N,) int64, ``-1`` for samples to exclude.
        episodes: E.
        generator: on the CPU; the only source of randomness.
        ways: classes per episode.
        shots: labelled samples per class.
        queries: queries per class; a sequence of ``ways`` numbers, one per class in the random order in which the
            classes are sampled, makes unbalanced episodes.

    Raises:
        TutelageError: fewer classes than ``ways`` have enough samples.
        ValueError: an argument is out of range.
    """
    counts = [queries] * ways if isinstance(queries, int) else list(queries)
    if episodes < 1 or ways < 2 or shots < 1 or len(counts) != ways or min(counts) < 0 or not sum(counts):
        raise ValueError(
            "an episode needs at least two classes, one shot per class, and the number of queries of each class; got "
            f"{episodes} episodes, {ways} ways, {shots} shots and queries {queries}"
        )
    needed = shots + max(counts)
    labels = labels.cpu()
    class_indices = [(labels == label).nonzero().squeeze(1) for label in torch.unique(labels[labels != UNLABELLED])]
    large = [indices for indices in class_indices if len(indices) >= needed]
    if len(large) < ways:
        raise TutelageError(
            f"episodes of {ways} classes need {needed} samples of each, and {len(large)} of {len(class_indices)} "
            "classes have as many; use fewer ways, shots or queries, or a larger split"
        )
    support, query_indices = [], []
    for _ in range(episodes):
        for slot, sampled_class in enumerate(torch.randperm(len(large), generator=generator)[:ways].tolist()):
            indices = large[sampled_class]
            sampled = indices[torch.randperm(len(indices), generator=generator)[:needed]]
            support.append(sampled[:shots])
            query_indices.append(sampled[shots : shots + counts[slot]])
    classes = torch.arange(ways)
    return Episodes(
        torch.cat(support).view(episodes, -1),
        torch.cat(query_indices).view(episodes, -1),
        classes.repeat_interleave(shots),
        classes.repeat_interleave(torch.tensor(counts)),
        ways,
    )


def mean_and_half_width(values: Tensor) -> tuple[float, float]:
    """Return the mean of (E,) values and half its 95 % interval, 1.96 s / sqrt(E), which is NaN for one value."""
    values = values.double()
    half = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), half


def evaluate_episodes(
    features: Tensor,
    episodes: Episodes,
    *,
    neighbours: int | None = None,
    alpha: float = 0.5,
    kappa: int = 3,
    classifier: Classifier = logistic_regression,
) -> dict[str, Any]:
    """Classify the queries of episodes with the graph, without the graph, and by the nearest mean.

    Args:
        features: (N, D), the finite, raw features of a split.
        episodes: episodes of that split.
        neighbours: k; ``None`` is 10, limited to ``most_neighbours``; 0 connects all samples.
        alpha, kappa: as in ``diffusion``.
        classifier: fitted to the support of each episode.

    Returns:
        ``accuracy`` (with the graph), ``without_graph``, ``nearest_mean``, and ``gain``, the difference of the first
        two paired by episode: these classify all queries together, centred by their own mean. ``inductive`` is the
        accuracy without a graph if queries arrive one at a time. Each has a ``..._half_width``, half of a 95 % interval
        over episodes. Also the mean ``purity`` of the graphs, the number of ``episodes``, and ``neighbours``, k.
    """
    samples = episodes.support.shape[1] + episodes.queries.shape[1]
    if neighbours is None:
        neighbours = min(NEIGHBOURS, most_neighbours(samples, episodes.ways))
    device = features.device
    targets, classes = episodes.support_targets.to(device), episodes.query_targets.to(device)
    rates: dict[str, list[Tensor]] = {}
    chunks = (torch.split(indices, AT_ONCE) for indices in (episodes.support, episodes.queries))
    for support_indices, query_indices in zip(*chunks, strict=True):
        support, queries = features[support_indices.to(device)], features[query_indices.to(device)]
        similarity = neighbour_graph(torch.cat([support, queries], 1), neighbours)
        plain, single = prepared(support, queries), prepared_alone(support, queries)
        smooth = interpolated(plain, similarity, alpha, kappa)
        # Both have the same support, so that one fitted classifier serves both.
        both = classifier(plain[0], targets, torch.cat([plain[1], single[1]], 1), episodes.ways)
        logits = {
            "accuracy": classifier(smooth[0], targets, smooth[1], episodes.ways),
            "without_graph": both[:, : queries.shape[1]],
            "inductive": both[:, queries.shape[1] :],
            "nearest_mean": nearest_mean(plain[0], targets, plain[1], episodes.ways),
        }
        for name, scores in logits.items():
            rates.setdefault(name, []).append((scores.argmax(-1) == classes).double().mean(-1))
        rates.setdefault("purity", []).append(purity(similarity, torch.cat([targets, classes])))
    per_episode = {name: torch.cat(values) for name, values in rates.items()}
    shares = per_episode.pop("purity")
    result: dict[str, Any] = {
        "episodes": len(episodes.support),
        "neighbours": neighbours,
        "purity": float(shares.nanmean()),
    }
    for name, values in (per_episode | {"gain": per_episode["accuracy"] - per_episode["without_graph"]}).items():
        result[name], result[f"{name}_half_width"] = mean_and_half_width(values)
    return result


def evaluate_alone(
    features: Tensor,
    episodes: Episodes,
    *,
    alpha: float = 0.5,
    kappa: int = 3,
    classifier: Classifier = logistic_regression,
) -> dict[str, float]:
    """Classify queries one at a time, each with a graph of the support and this query.

    A classifier is fitted for each query, which is slow: only one query of each class in the first 100 episodes is
    classified. k is the authors' 10. Arguments are as in ``evaluate_episodes``.

    Returns:
        ``inductive_graph``, the accuracy, and ``inductive_graph_half_width``.
    """
    device, ways = features.device, episodes.ways
    targets, classes = episodes.support_targets.to(device), episodes.query_targets.to(device)
    first = torch.stack([(classes == label).nonzero()[0, 0] for label in torch.unique(classes)])
    support = features[episodes.support[:ALONE].to(device)][:, None].expand(-1, len(first), -1, -1)
    queries = features[episodes.queries[:ALONE].to(device)][:, first, None]  # (E, ways, 1, D)
    similarity = neighbour_graph(torch.cat([support, queries], 2), NEIGHBOURS)
    smooth = interpolated(prepared_alone(support, queries), similarity, alpha, kappa)
    scores = classifier(smooth[0], targets, smooth[1], ways)[:, :, 0]
    mean, half = mean_and_half_width((scores.argmax(-1) == classes[first]).double().mean(-1))
    return {"inductive_graph": mean, "inductive_graph_half_width": half}
