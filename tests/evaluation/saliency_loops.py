"""The metrics of saliency maps in plain loops over lists, written from their definitions in the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Map = Sequence[Sequence[float]]


def pixels(values: Map) -> list[float]:
    return [float(value) for row in values for value in row]


def density(values: Map) -> list[float]:
    flat = pixels(values)
    total = sum(flat)
    return [value / total for value in flat]


def cc(prediction: Map, target: Map) -> float:
    p, q = pixels(prediction), pixels(target)
    mean_p, mean_q = sum(p) / len(p), sum(q) / len(q)
    covariance = sum((a - mean_p) * (b - mean_q) for a, b in zip(p, q, strict=True))
    return covariance / math.sqrt(sum((a - mean_p) ** 2 for a in p) * sum((b - mean_q) ** 2 for b in q))


def nss(prediction: Map, fixations: Map) -> float:
    p = pixels(prediction)
    mean = sum(p) / len(p)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in p) / len(p))
    scores = []
    for value, count in zip(p, pixels(fixations), strict=True):
        scores += [(value - mean) / deviation] * int(count)
    return sum(scores) / len(scores)


def sim(prediction: Map, target: Map) -> float:
    return sum(min(a, b) for a, b in zip(density(prediction), density(target), strict=True))


def kl(prediction: Map, target: Map) -> float:
    total = 0.0
    for p, q in zip(density(prediction), density(target), strict=True):
        if q > 0:
            total += q * math.log(q / p)
    return total


def area(positives: Sequence[float], negatives: Sequence[float], thresholds: Sequence[float]) -> float:
    """The area under the ROC curve through the points at these thresholds, by the trapezoidal rule."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(thresholds), reverse=True):
        false_rate = sum(value >= threshold for value in negatives) / len(negatives)
        points.append((false_rate, sum(value >= threshold for value in positives) / len(positives)))
    points.append((1.0, 1.0))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def split(prediction: Map, fixations: Map) -> tuple[list[float], list[float]]:
    pairs = list(zip(pixels(prediction), pixels(fixations), strict=True))
    return [p for p, count in pairs if count > 0], [p for p, count in pairs if count == 0]


def auc_judd(prediction: Map, fixations: Map) -> float:
    positives, negatives = split(prediction, fixations)
    return area(positives, negatives, positives)


def auc_borji(prediction: Map, fixations: Map) -> float:
    positives, _ = split(prediction, fixations)
    return area(positives, pixels(prediction), pixels(prediction))


def repeated(prediction: Map, counts: Map) -> list[float]:
    return [p for p, count in zip(pixels(prediction), pixels(counts), strict=True) for _ in range(int(count))]


def auc_shuffled(prediction: Map, fixations: Map, others: Map) -> float:
    return area(repeated(prediction, fixations), repeated(prediction, others), pixels(prediction))
