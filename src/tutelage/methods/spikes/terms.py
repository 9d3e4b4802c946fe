"""Losses between spike trains."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms import Term
from tutelage.terms.precision import full_precision
from tutelage.terms.term import BUILD_FIRST


@full_precision
def window_counts(trains: Tensor, width: int, stride: int) -> Tensor:
    """The number of spikes in each window of w steps: c_k = sum of S_t over t = k d .. k d + w - 1.

    Windows begin every d steps until one reaches the last step; the last one may have fewer than w steps.

    Args:
        trains: S, (B, T, ...), 0 or 1.
        width: w, from 1 to T.
        stride: d, from 1 to w, so that each step is in a window.

    Returns:
        (B, K, ...) with K = 1 + ceil((T - w) / d).

    Raises:
        TutelageError: w or d is out of its range.
    """
    check_window(trains.shape[1], width, stride)
    count = 1 - (width - trains.shape[1]) // stride
    missing = (count - 1) * stride + width - trains.shape[1]
    padded = F.pad(trains, (*[0, 0] * (trains.ndim - 2), 0, missing))
    return padded.unfold(1, width, stride).sum(-1)


@full_precision
def window_distance(student: Tensor, teacher: Tensor, width: int, stride: int) -> Tensor:
    """The mean over windows and neurons of (c^S - c^T)^2 per sample, with c of ``window_counts``.

    It is not divided by w. With w = 1 it is the share of steps and neurons in which the trains differ (their normalised
    Hamming distance), with w = T the squared difference of the counts, which does not depend on the order of the steps.
    It is 0 if and only if all counts agree.

    Args:
        student, teacher: (B, T, ...) spike trains of one shape. No gradient reaches the teacher's.
        width, stride: w and d.

    Returns:
        (B,).

    Raises:
        TutelageError: the shapes differ, or w or d is out of its range.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"spike trains of the student {tuple(student.shape)} and of the teacher {tuple(teacher.shape)} cannot be "
            "compared; give both networks as many steps and outputs"
        )
    counts, target = (window_counts(trains, width, stride) for trains in (student, teacher.detach()))
    return (counts - target).square().flatten(1).mean(1)


def check_window(steps: int, width: int, stride: int) -> None:
    """Refuse windows that do not fit into T steps, or leave steps between them."""
    if not 1 <= width <= steps:
        raise TutelageError(f"a window must have 1 to {steps} of the {steps} steps, got width {width}")
    if not 1 <= stride <= width:
        raise TutelageError(
            f"windows of {width} steps must begin every 1 to {width} steps, so that none is left out, got stride "
            f"{stride}"
        )


class WindowMatching(Term):
    """``window_distance`` of the output spikes, per sample (B,).

    Args:
        width, stride: w and d.
    """

    reads_labels = False
    roles = ("spikes",)

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = width, stride

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), squared spikes."""
        return window_distance(student["spikes"], self.required(teacher)["spikes"], self.width, self.stride)


class HiddenWindowMatching(Term):
    """The mean over windows and neurons of (A c^S / w - c^T / w)^2 per sample (B,), c of the last hidden layer.

    A is a linear layer with a bias from the student's neurons to the teacher's, which belongs to this term; the
    identity if both have as many.

    Args:
        width, stride: w and d.
    """

    reads_labels = False
    roles = ("hidden_spikes",)

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = width, stride
        self.adapter: nn.Module | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create A."""
        size, target = (outputs["hidden_spikes"].shape[2] for outputs in (student, self.required(teacher)))
        self.adapter = nn.Identity() if size == target else nn.Linear(size, target)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), squared spikes a step."""
        adapter = self.required(self.adapter, "its adapter", BUILD_FIRST)
        rates, target = (
            window_counts(outputs["hidden_spikes"], self.width, self.stride) / self.width
            for outputs in (student, self.required(teacher).detach())
        )
        mapped: Tensor = adapter(rates)
        return (mapped - target).square().flatten(1).mean(1)
