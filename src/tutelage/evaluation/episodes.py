"""Few-shot classification of frozen features, with a graph over the samples of an episode.

Hu, Gripon, Pateux, "Graph-Based Interpolation of Feature Vectors for Accurate Few-Shot Classification", ICPR 2020,
arXiv 2001.09849; constants of the authors' code, yhu01/transfer-sgc.

An episode has ``ways`` classes, a few labelled samples of each (the support, n in all) and others to be classified (the
queries, Q in all). Only the accuracies and the purity of graphs read a query's class.
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

AT_ONCE = 100  # episodes in memory together
ALONE = 100  # episodes whose queries are classified one at a time too


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """E episodes, as places in a part.

    Attributes:
        support: (E, n) int64 places of the labelled samples.
        queries: (E, Q) int64 places of the others; no sample is twice in an episode.
        support_targets: (n,) int64, the class within the episode, 0 .. ways - 1.
        query_targets: (Q,) int64, the same of the queries.
        ways: the number of classes.
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
    """Draw episodes: the classes uniformly, and of each class its samples uniformly, all without replacement.

    Args:
        labels: (N,) int64, ``-1`` for samples that are left out.
        episodes: E.
        generator: on the CPU; it alone decides.
        ways: classes of an episode.
        shots: labelled samples of each class.
        queries: samples to be classified of each class; a number for each of the ``ways`` classes, in the random order
            in which they are drawn, makes uneven episodes.

    Raises:
        TutelageError: fewer classes than ``ways`` have enough samples.
        ValueError: a number that makes no episode.
    """
    counts = [queries] * ways if isinstance(queries, int) else list(queries)
    if episodes < 1 or ways < 2 or shots < 1 or len(counts) != ways or min(counts) < 0 or not sum(counts):
        raise ValueError(
            "an episode needs two classes, a labelled sample of each and a number of queries for each; got "
            f"{episodes} episodes, {ways} ways, {shots} shots and queries {queries}"
        )
    needed = shots + max(counts)
    labels = labels.cpu()
    places = [(labels == label).nonzero().squeeze(1) for label in torch.unique(labels[labels != UNLABELLED])]
    large = [own for own in places if len(own) >= needed]
    if len(large) < ways:
        raise TutelageError(
            f"episodes of {ways} classes need {needed} samples of each, and {len(large)} of {len(places)} classes have "
            "as many; take fewer ways, shots or queries, or a larger part"
        )
    support, rest = [], []
    for _ in range(episodes):
        for slot, chosen in enumerate(torch.randperm(len(large), generator=generator)[:ways].tolist()):
            own = large[chosen]
            drawn = own[torch.randperm(len(own), generator=generator)[:needed]]
            support.append(drawn[:shots])
            rest.append(drawn[shots : shots + counts[slot]])
    classes = torch.arange(ways)
    return Episodes(
        torch.cat(support).view(episodes, -1),
        torch.cat(rest).view(episodes, -1),
        classes.repeat_interleave(shots),
        classes.repeat_interleave(torch.tensor(counts)),
        ways,
    )


def mean_and_half_width(values: Tensor) -> tuple[float, float]:
    """The mean of (E,) values and half its 95 % interval, 1.96 s / sqrt(E); NaN of one value."""
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
    """Classify the queries of many episodes: with the graph, with the same classifier alone, and by the nearest mean.

    Args:
        features: (N, D) of a part, finite; raw, as the network gives them.
        episodes: of that part.
        neighbours: k; ``None`` takes 10 and at most ``most_neighbours``; 0 joins all samples.
        alpha, kappa: as in ``diffusion``.
        classifier: fitted to the support of each episode.

    Returns:
        ``accuracy``, that ``without_graph``, that of the ``nearest_mean``, and the ``gain`` of the first over the
        second, paired by episode: all of them are of all queries together, which are centred by their own mean. And
        ``inductive``, the accuracy without a graph of queries that come one at a time. Each with its
        ``..._half_width``, half a 95 % interval over episodes. ``purity`` of the graphs, the number of ``episodes``,
        and ``neighbours``, k.
    """
    samples = episodes.support.shape[1] + episodes.queries.shape[1]
    if neighbours is None:
        neighbours = min(NEIGHBOURS, most_neighbours(samples, episodes.ways))
    here = features.device
    targets, classes = episodes.support_targets.to(here), episodes.query_targets.to(here)
    rates: dict[str, list[Tensor]] = {}
    for places, others in zip(*(torch.split(p, AT_ONCE) for p in (episodes.support, episodes.queries)), strict=True):
        support, queries = features[places.to(here)], features[others.to(here)]
        similarity = neighbour_graph(torch.cat([support, queries], 1), neighbours)
        plain, single = prepared(support, queries), prepared_alone(support, queries)
        smooth = interpolated(plain, similarity, alpha, kappa)
        # The support is the same in both, and so is the classifier that is fitted to it.
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
    each = {name: torch.cat(values) for name, values in rates.items()}
    shares = each.pop("purity")
    result: dict[str, Any] = {
        "episodes": len(episodes.support),
        "neighbours": neighbours,
        "purity": float(shares.nanmean()),
    }
    for name, values in (each | {"gain": each["accuracy"] - each["without_graph"]}).items():
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
    """Classify queries one at a time, each with a graph of the support and itself.

    A classifier is fitted for each query, so that they are one query of each class in the first 100 episodes. k is the
    authors' 10, since there is no class to limit it to. Arguments as of ``evaluate_episodes``.

    Returns:
        ``inductive_graph``, the accuracy, and ``inductive_graph_half_width``.
    """
    here, ways = features.device, episodes.ways
    targets, classes = episodes.support_targets.to(here), episodes.query_targets.to(here)
    first = torch.stack([(classes == label).nonzero()[0, 0] for label in torch.unique(classes)])
    support = features[episodes.support[:ALONE].to(here)][:, None].expand(-1, len(first), -1, -1)
    queries = features[episodes.queries[:ALONE].to(here)][:, first, None]  # (E, ways, 1, D)
    similarity = neighbour_graph(torch.cat([support, queries], 2), NEIGHBOURS)
    smooth = interpolated(prepared_alone(support, queries), similarity, alpha, kappa)
    scores = classifier(smooth[0], targets, smooth[1], ways)[:, :, 0]
    mean, half = mean_and_half_width((scores.argmax(-1) == classes[first]).double().mean(-1))
    return {"inductive_graph": mean, "inductive_graph_half_width": half}
