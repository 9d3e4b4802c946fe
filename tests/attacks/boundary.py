"""Linear teachers, and the boundary attack in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-4  # the authors' overshoot
ETA = 0.3


def two_planes(length: float) -> Callable[[Tensor], Tensor]:
    """f(x) = (w x, 0) with ||w|| = length, along no axis: its boundary is the plane w x = 0."""
    w = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * length
    return lambda x: torch.stack([x @ w, torch.zeros(len(x), dtype=x.dtype)], 1)


def attack_by_loops(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    base: Tensor,
    target: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
    norm: str,
) -> Tensor:
    """The paper's algorithm in plain loops, one sample after another."""
    ends = []
    for x, b, k in zip(inputs, base.tolist(), target.tolist(), strict=True):
        for _ in range(steps):
            logits = network(x[None])[0].detach()
            if int(logits.argmax()) != b:
                break
            jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None])[0], x)  # type: ignore[no-untyped-call]
            gradient = (jacobian[b] - jacobian[k]).flatten().tolist()
            length = math.sqrt(sum(g * g for g in gradient))
            divisor = length if norm == "first" else length**2
            gap = float(logits[b] - logits[k])
            flat, lows, highs = x.flatten().tolist(), low.expand_as(x).flatten(), high.expand_as(x).flatten()
            x = torch.tensor(  # noqa: PLW2901
                [
                    min(max(value - ETA * (gap + EPS) * g / divisor, float(lowest)), float(highest))
                    for value, g, lowest, highest in zip(flat, gradient, lows, highs, strict=True)
                ],
                dtype=x.dtype,
            ).view_as(x)
        ends.append(x)
    return torch.stack(ends).detach()


def selected_by_loops(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> list[int]:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value - max(row)) for value in row]
        return [power / sum(powers) for power in powers]

    scores = []
    for n, (s, t, b) in enumerate(zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)):
        if s.index(max(s)) == b and t.index(max(t)) == b:
            q_s, q_t = softmax(s), softmax(t)
            scores.append((sum((q_t[c] - q_s[c]) ** 2 for c in range(len(s)) if c != b), n))
    return [n for _, n in sorted(scores, reverse=True)[:count]]
