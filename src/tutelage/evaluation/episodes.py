"""Few-shot classification of frozen features, with a graph over the samples of an episode.

Hu, Gripon, Pateux, "Graph-Based Interpolation of Feature Vectors for Accurate Few-Shot Classification", ICPR 2020,
arXiv 2001.09849; constants of the authors' code, yhu01/transfer-sgc.

An episode has ``ways`` classes, a few labelled samples of each (the support, n in all) and others to be classified
together (the queries, Q in all). All functions take E episodes at once, or any other leading axes: support (..., n, D),
queries (..., Q, D), and the class numbers 0 .. ways - 1 of the support (n,), which every episode shares. Only the
accuracies and ``purity`` read a query's class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.errors import TutelageError
from tutelage.terms.unit import unit

NEIGHBOURS = 10  # the authors' k
AT_ONCE = 100  # episodes in memory together
MOST_STEPS = 100  # of Newton's method, which takes about ten

Classifier = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``(support, targets, queries, ways)`` to the queries' logits (..., Q, ways)."""


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


# --- the graph


def most_neighbours(samples: int, ways: int) -> int:
    """How many other samples of its class a sample has on average in an episode: s + q - 1, and at least 1.

    With more neighbours than that the graph must join different classes. It is known without any query's class.
    """
    return max(samples // ways - 1, 1)


def neighbour_graph(vectors: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """The similarities S of samples: cosines of their vectors, where one is among the nearest of the other, else 0.

    Args:
        vectors: (..., N, D), raw: neither centred nor normalised.
        neighbours: k; 0 keeps all pairs.

    Returns:
        (..., N, N), symmetric, at least 0, with a diagonal of 0. Negative cosines are 0, as the degrees of the graph
        must not be negative; the authors' features are behind a ReLU and have none.
    """
    directions = unit(vectors)
    cosines = (directions @ directions.mT).clamp(min=0)
    samples = cosines.shape[-1]
    itself = torch.eye(samples, dtype=torch.bool, device=cosines.device)
    if neighbours and neighbours < samples - 1:
        nearest = cosines.masked_fill(itself, -1.0).topk(neighbours, -1).indices
        near = torch.zeros_like(cosines, dtype=torch.bool).scatter(-1, nearest, True)
        cosines = cosines.where(near | near.mT, 0.0)
    return cosines.masked_fill(itself, 0.0)


def diffusion(similarity: Tensor, alpha: float = 0.5, kappa: int = 3) -> Tensor:
    """E = (alpha I + D^(-1/2) S D^(-1/2))^kappa, D the diagonal of the sums of rows: (..., N, N).

    A sample without a neighbour is only scaled, by alpha^kappa: its row and column of the normalised S are 0.

    Args:
        similarity: S, (..., N, N), symmetric and at least 0.
        alpha: how much of itself a sample keeps in each step.
        kappa: the number of steps, at least 1.
    """
    degrees = similarity.sum(-1)
    scale = degrees.where(degrees > 0, torch.inf).rsqrt()
    step = scale[..., :, None] * similarity * scale[..., None, :]
    operator: Tensor = torch.linalg.matrix_power(step + alpha * torch.eye(step.shape[-1]).to(step), kappa)
    return operator


def prepared(support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Each less its own mean, at length 1. A single query is not centred, of which nothing would be left."""
    centred = queries - queries.mean(-2, keepdim=True) if queries.shape[-2] > 1 else queries
    return unit(support - support.mean(-2, keepdim=True)), unit(centred)


def purity(similarity: Tensor, targets: Tensor) -> Tensor:
    """The share of a graph's weight that joins samples of one class: (..., N, N) and (N,) to (...), in [0, 1].

    NaN for a graph without edges. Where it is low, interpolation over the graph is expected to hurt.
    """
    within = similarity * (targets[:, None] == targets)
    return within.sum((-2, -1)) / similarity.sum((-2, -1))


# --- classifiers


def nearest_mean(support: Tensor, targets: Tensor, queries: Tensor, ways: int) -> Tensor:
    """Minus the squared distance of each query to the mean of each class: (..., Q, ways)."""
    member = F.one_hot(targets, ways).to(support)
    means = member.mT @ support / member.sum(0)[:, None]
    return -torch.cdist(queries, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def logistic_regression(
    support: Tensor, targets: Tensor, queries: Tensor, ways: int, strength: float = 100.0
) -> Tensor:
    """Logits of the linear classifier of least strength x (sum of cross-entropies) + ||W||^2 / 2: (..., Q, ways).

    The problem of scikit-learn's ``LogisticRegression(C=strength)``, solved in all episodes at once, in float64 by
    Newton's method with halved steps. It is solved in the span of the support, where the weights lie.

    Args:
        support, targets, queries, ways: as for every ``Classifier``.
        strength: C. The authors' classifier has hardly any regularisation, which is a large one.
    """
    basis = torch.linalg.qr(support.double().mT).Q
    points, others = _with_one(support.double() @ basis), _with_one(queries.double() @ basis)
    wanted = F.one_hot(targets, ways).to(points)
    penalty = torch.ones(points.shape[-1], 1).to(points)
    penalty[-1] = 1e-8  # the bias is free; of a constant added to all classes this makes 0
    weights = points.new_zeros(*points.shape[:-2], points.shape[-1], ways)

    def objective(weights: Tensor) -> Tensor:
        losses = -(wanted * (points @ weights).log_softmax(-1)).sum((-2, -1))
        return strength * losses + (penalty * weights.square()).sum((-2, -1)) / 2

    value = objective(weights)
    for _ in range(MOST_STEPS):
        p = (points @ weights).softmax(-1)
        gradient = strength * points.mT @ (p - wanted) + penalty * weights
        if gradient.abs().max() < 1e-8 * strength:
            break
        spread = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        curvature = strength * torch.einsum("...ni,...nj,...nab->...iajb", points, points, spread)
        hessian = curvature.flatten(-2).flatten(-3, -2) + torch.diag_embed(penalty.expand(-1, ways).flatten())
        step = torch.linalg.solve(hessian, gradient.flatten(-2)).view_as(weights)
        new = objective(weights - step)
        while (worse := new > value + 1e-12 * value.abs()).any():
            step = step.where(~worse[..., None, None], step / 2)
            new = objective(weights - step)
        weights, value = weights - step, new
    return others @ weights


def adam_regression(
    support: Tensor,
    targets: Tensor,
    queries: Tensor,
    ways: int,
    *,
    steps: int = 1000,
    rate: float = 1e-3,
    decay: float = 5e-6,
) -> Tensor:
    """Logits of the linear classifier as the authors train it: full batches, Adam, stopped early: (..., Q, ways).

    Weights begin at 0, where the authors draw them, and all is float64: Adam would make whole steps of the rounding in
    a gradient of 0. Episodes do not influence each other.
    """
    points = _with_one(support.double())
    wanted = F.one_hot(targets, ways).to(points)
    weights = points.new_zeros(*points.shape[:-2], points.shape[-1], ways)
    optimiser = torch.optim.Adam([weights], lr=rate, weight_decay=decay)
    for _ in range(steps):
        weights.grad = points.mT @ ((points @ weights).softmax(-1) - wanted) / len(targets)
        optimiser.step()
    return _with_one(queries.double()) @ weights


def _with_one(vectors: Tensor) -> Tensor:
    """A further feature of 1, whose weights are the bias."""
    return torch.cat([vectors, vectors.new_ones(*vectors.shape[:-1], 1)], -1)


# --- evaluation


def interpolated(
    support: Tensor, queries: Tensor, similarity: Tensor, alpha: float = 0.5, kappa: int = 3
) -> tuple[Tensor, Tensor]:
    """``prepared`` vectors, diffused over the graph of support and queries: (..., n, D) and (..., Q, D).

    Args:
        support, queries: raw vectors.
        similarity: (..., n + Q, n + Q), from ``neighbour_graph`` of both.
        alpha, kappa: as in ``diffusion``.
    """
    both = diffusion(similarity, alpha, kappa) @ torch.cat(prepared(support, queries), -2)
    return both[..., : support.shape[-2], :], both[..., support.shape[-2] :, :]


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
        second, paired by episode; each with its ``..._half_width``, half a 95 % interval over episodes. ``purity`` of
        the graphs, the number of ``episodes``, and ``neighbours``, k.
    """
    samples = episodes.support.shape[1] + episodes.queries.shape[1]
    if neighbours is None:
        neighbours = min(NEIGHBOURS, most_neighbours(samples, episodes.ways))
    here = features.device
    targets, wanted = episodes.support_targets.to(here), episodes.query_targets.to(here)
    rates: dict[str, list[Tensor]] = {"accuracy": [], "without_graph": [], "nearest_mean": [], "purity": []}
    for places, others in zip(*(torch.split(p, AT_ONCE) for p in (episodes.support, episodes.queries)), strict=True):
        support, queries = features[places.to(here)], features[others.to(here)]
        similarity = neighbour_graph(torch.cat([support, queries], 1), neighbours)
        plain = prepared(support, queries)
        smooth = interpolated(support, queries, similarity, alpha, kappa)
        logits = {
            "accuracy": classifier(smooth[0], targets, smooth[1], episodes.ways),
            "without_graph": classifier(plain[0], targets, plain[1], episodes.ways),
            "nearest_mean": nearest_mean(plain[0], targets, plain[1], episodes.ways),
        }
        for name, scores in logits.items():
            rates[name].append((scores.argmax(-1) == wanted).double().mean(-1))
        rates["purity"].append(purity(similarity, torch.cat([targets, wanted])))
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
