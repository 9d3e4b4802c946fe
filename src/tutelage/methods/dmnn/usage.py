"""How the gates of a network are used on a split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.evaluation.json_numbers import json_number
from tutelage.methods.dmnn.terms import executed_share

SHUFFLES = 20


def gate_usage(gates: Tensor, labels: Tensor, costs: Sequence[int]) -> dict[str, Any]:
    """Statistics of gates that show whether they depend on the input, as plain JSON values.

    Args:
        gates: (N, K), 0 or 1.
        labels: (N,) int64, -1 for none.
        costs: (K,) of the paths.

    Returns:
        ``executed_share``; ``open_share`` of each gate; ``gate_variance``, the mean over gates of p (1 - p) with p the
        gate's share; ``patterns``, the number of different rows of gates; ``class_information`` in nats, the mutual
        information of pattern and class, and ``class_information_by_chance``, its mean over 20 shuffles of the labels:
        it is above 0 since the estimate from counts is biased upwards.
    """
    shares = gates.double().mean(0)
    patterns = [tuple(row) for row in gates.int().tolist()]
    labelled = (labels >= 0).nonzero()[:, 0].tolist()
    rows, classes = [patterns[row] for row in labelled], labels[labels >= 0]
    generator = torch.Generator().manual_seed(0)
    shuffled = [
        mutual_information(rows, classes[torch.randperm(len(classes), generator=generator)].tolist())
        for _ in range(SHUFFLES)
    ]
    return {
        "executed_share": json_number(executed_share(gates.double(), torch.tensor(costs)).mean()),
        "open_share": shares.tolist(),
        "gate_variance": json_number((shares * (1 - shares)).mean()),
        "patterns": len(set(patterns)),
        "class_information": mutual_information(rows, classes.tolist()),
        "class_information_by_chance": sum(shuffled) / SHUFFLES,
    }


def mutual_information(first: Sequence[Any], second: Sequence[Any]) -> float:
    """sum p(a, b) log(p(a, b) / (p(a) p(b))) in nats, with shares of N pairs as p; 0 without any pair."""
    count = len(first)
    left, right = Counter(first), Counter(second)
    return sum(
        pairs / count * math.log(pairs * count / (left[a] * right[b]))
        for (a, b), pairs in Counter(zip(first, second, strict=True)).items()
    )
