"""The compressed versions of a network, their costs, and the best compromises among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tutelage.tasks import Metric

DENSE = "teacher"


@dataclass(frozen=True, slots=True)
class Variant:
    """One version of the network.

    Attributes:
        name: of its run, with " INT8" for its quantised file; "teacher" for the network itself.
        score: the main metric on the test split, computed by onnxruntime from the file; NaN without labels.
        flops: of one input, a multiply-add is 2; ``None`` if they vary.
        parameters: the number of parameters that are not fixed at zero.
        size: of the ONNX file, in bytes.
        latency: of one input in onnxruntime with one thread, in milliseconds: the median.
        file: the ONNX file, relative to the folder of all results.
        packed: the size of the file of its weights with integers of few bits or without zeros (``models/packed.py``),
            in bytes; ``None`` if no layer is quantised or masked.
    """

    name: str
    score: float
    flops: int
    parameters: int
    size: int
    latency: float
    file: str
    packed: int | None = None


@dataclass(frozen=True)
class Compression:
    """What ``tutelage.compression.compress`` returns.

    Attributes:
        network: the name of the compressed network.
        data: the name of the data.
        samples: the number of test samples.
        metric: the main metric of the task.
        targets: the targets as text.
        variants: the network itself first, then the others in the order of training.
        failed: the reasons of those that could not be made, by name.
    """

    network: str
    data: str
    samples: int
    metric: Metric
    targets: tuple[str, ...]
    variants: tuple[Variant, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def dense(self) -> Variant:
        """The network itself."""
        return self.variants[0]

    def front(self, cost: str = "latency") -> list[Variant]:
        """The variants for which no other is both better and cheaper, cheapest first.

        Args:
            cost: "latency", "size", "flops" or "parameters".
        """
        return front(self.variants, lambda variant: float(getattr(variant, cost)), self.goodness)

    def knee(self, cost: str = "latency") -> Variant:
        """The best compromise between the main metric and a cost: see ``knee``."""
        return knee(self.front(cost), lambda variant: float(getattr(variant, cost)), self.goodness)

    def goodness(self, variant: Variant) -> float:
        """The score, with its sign changed if lower is better."""
        return -variant.score if self.metric.better == "lower" else variant.score

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        fronts = {cost: {variant.name for variant in self.front(cost)} for cost in ("latency", "size")}
        return {
            "network": self.network,
            "data": self.data,
            "samples": self.samples,
            "metric": self.metric.title,
            "targets": list(self.targets),
            "knee": {cost: self.knee(cost).name for cost in fronts},
            "variants": [
                {
                    **asdict(variant),
                    "score": None if math.isnan(variant.score) else variant.score,
                    "on_front": [cost for cost, names in fronts.items() if variant.name in names],
                }
                for variant in self.variants
            ],
            "failed": dict(self.failed),
        }


def front(
    variants: Sequence[Variant], cost: Callable[[Variant], float], goodness: Callable[[Variant], float]
) -> list[Variant]:
    """The variants that none beats in one of two respects without being worse in the other, cheapest first.

    Variants without a score are in none.
    """
    known = [variant for variant in variants if not math.isnan(goodness(variant))]
    ordered = sorted(known, key=lambda variant: (cost(variant), -goodness(variant)))
    best, chosen = -math.inf, []
    for variant in ordered:
        if goodness(variant) > best:
            best = goodness(variant)
            chosen.append(variant)
    return chosen or list(variants[:1])


def knee(ordered: Sequence[Variant], cost: Callable[[Variant], float], goodness: Callable[[Variant], float]) -> Variant:
    """The point of a front that is farthest above the straight line from its cheapest to its best point.

    Both axes are scaled to [0, 1], the cost logarithmically. With two points or fewer it is the best one.

    Args:
        ordered: a front, cheapest first, not empty.
        cost, goodness: the axes.
    """
    first, last = ordered[0], ordered[-1]
    if len(ordered) < 3:
        return last
    width = math.log(cost(last) / cost(first))
    height = goodness(last) - goodness(first)

    def above(variant: Variant) -> float:
        return (goodness(variant) - goodness(first)) / height - math.log(cost(variant) / cost(first)) / width

    return max(ordered, key=above)
