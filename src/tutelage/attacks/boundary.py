"""Boundary supporting samples (BSS): Heo, Lee, Yun, Choi 2019, arXiv 1805.05532."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tutelage.data.batch import Batch, hard_labels
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.term import View

Norm = Literal["first", "squared"]
OVERSHOOT = 1e-4  # the authors' eps, to step slightly beyond the boundary
MIN_NORM = 1e-12  # lower bound of the gradient norm


def boundary_attack(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    base: Tensor,
    target: Tensor,
    *,
    low: Tensor | float = float("-inf"),
    high: Tensor | float = float("inf"),
    steps: int = 10,
    step_size: float = 0.3,
    norm: Norm = "first",
    mask: Tensor | None = None,
) -> Tensor:
    """Move each input from its base class towards the target class until the network no longer predicts the base class.

        x <- x - eta (L + 1e-4) dL/dx / ||dL/dx||,   L(x) = f_b(x) - f_k(x)

    per sample, clamped to [low, high]. A sample stops as soon as f_b is not the largest logit. ``norm="first"`` divides
    by the norm of the gradient, as in the authors' code; ``"squared"`` by its square, a DeepFool step that does not
    depend on the scale of f (the paper [from memory]).

    Args:
        network: images (B, ...) to logits (B, C). Its parameters get no gradient.
        inputs: (B, ...), as the network takes them.
        base, target: the classes b and k, (B,) int64.
        low, high: the range of the inputs: numbers, or tensors that broadcast against the inputs.
        steps: the maximum number of steps.
        step_size: eta.
        norm: "first" or "squared".
        mask: the samples to move, (B,) bool; ``None`` for all.

    Returns:
        (B, ...), detached.
    """
    moved, indices = inputs.detach().clone(), torch.arange(len(inputs), device=inputs.device)
    active = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
    for _ in range(steps):
        if active.is_cpu:  # on another device, indexing by a mask would wait for the device
            indices, active = indices[active], active[active]
            if not len(indices):
                break
        with torch.enable_grad():
            images = moved[indices].requires_grad_()
            logits = network(images)
            gap = (logits.gather(1, base[indices, None]) - logits.gather(1, target[indices, None])).squeeze(1)
            (gradient,) = torch.autograd.grad(gap.sum(), images)
        active = active & (logits.argmax(1) == base[indices])
        length = gradient.flatten(1).norm(dim=1).clamp(min=MIN_NORM)
        scale = step_size * (gap.detach() + OVERSHOOT) / (length if norm == "first" else length.square())
        per_sample = (-1, *[1] * (images.ndim - 1))
        updated = (images.detach() - scale.view(per_sample) * gradient).clamp(_like(low, moved), _like(high, moved))
        moved[indices] = torch.where(active.view(per_sample), updated, images.detach())
    return moved


def draw_targets(logits: Tensor, base: Tensor) -> Tensor:
    """Draw a class k != b for each sample with probability q_k / (1 - q_b), q = softmax(logits): (B, C) to (B,)."""
    others = logits.detach().float().scatter(1, base[:, None], float("-inf"))  # exact even if q_b rounds to 1
    return torch.multinomial(others.softmax(1), 1).squeeze(1)


class BoundarySamples(View):
    """A batch of boundary supporting samples: correctly classified samples, moved to the teacher's decision boundary.

    It selects samples that student *and* teacher classify correctly, those first on which the two disagree most about
    the other classes, by the sum over c != b of (q_t,c - q_s,c)^2. Each is moved towards a class drawn by
    ``draw_targets``, in the teacher's normalised input space, clamped to the range of pixels in [0, 1].

    The batch always has the same number of samples, so that batch normalisation has enough and compiled networks get
    one shape: if fewer samples qualify, they are repeated, and only the first occurrence of each counts (``weight``).
    If none qualifies, no sample is moved and none counts.

    Args:
        teacher: the network whose decision boundary is used.
        share: the share of the batch to select (at least 1 sample).
        steps, step_size, norm: as in ``boundary_attack``.
        discard_failed: whether a sample counts only if it ends in the target class, as in the paper [from memory]; in
            the authors' code all count.
        updates_statistics: whether these samples update the running statistics of the student's batch normalisation, as
            in the authors' code.
    """

    roles = teacher_roles = ("logits",)

    def __init__(
        self,
        teacher: Tapped,
        share: float = 0.25,
        *,
        steps: int = 10,
        step_size: float = 0.3,
        norm: Norm = "first",
        discard_failed: bool = False,
        updates_statistics: bool = True,
    ) -> None:
        check_tapped("BoundarySamples", teacher)
        if not 0 < share <= 1:
            raise TutelageError(f"the share of a batch must be in (0, 1], got {share}")
        self.teacher, self.share, self.updates_statistics = teacher, share, updates_statistics
        self.steps, self.step_size, self.norm, self.discard_failed = steps, step_size, norm, discard_failed

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The boundary samples, in pixels."""
        if teacher is None:
            raise TutelageError("BoundarySamples needs a teacher's outputs; give the learner a source")
        labels = hard_labels(batch.targets)
        selected, first, valid = select_samples(
            student["logits"], teacher["logits"], labels, max(1, round(self.share * len(batch)))
        )
        base, targets = labels[selected].clamp(min=0), batch.targets[selected]  # samples without a label never count
        target = draw_targets(teacher["logits"][selected], base)
        mean, std = self.teacher.mean, self.teacher.std
        moved = (batch.inputs[selected] - mean) / std
        attacked = boundary_attack(
            self._logits,
            moved,
            base,
            target,
            low=(0 - mean) / std,
            high=(1 - mean) / std,
            steps=self.steps,
            step_size=self.step_size,
            norm=self.norm,
            mask=valid,
        )
        moved = attacked[first]
        if self.discard_failed:
            with torch.no_grad():
                valid = valid & (self._logits(moved).argmax(1) == target)
        weight = valid * (len(selected) / valid.sum().clamp(min=1))  # so that the mean is over the samples that count
        pixels = (moved * std + mean).clamp(0, 1)
        return Batch(pixels, targets, batch.index[selected], None, weight)

    def _logits(self, images: Tensor) -> Tensor:
        pixels = images * self.teacher.std + self.teacher.mean
        # Eager, since the number of moving samples decreases and each number would be compiled separately.
        return self.teacher.tap(pixels, eager=True)["logits"]


def select_samples(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select base samples: those that both networks classify correctly, those first on which they disagree most.

    Args:
        student, teacher: logits (B, C).
        labels: (B,) int64.
        count: the number of samples to select, at most B.

    Returns:
        Their indices in the batch, (count,); for each the position of its first occurrence, (count,); and which of them
        count, (count,) bool: all but repetitions, which occur if too few qualify.
    """
    correct = (student.argmax(1) == labels) & (teacher.argmax(1) == labels)
    difference = (teacher.float().softmax(1) - student.float().softmax(1)).square()
    disagreement = difference.scatter(1, labels.clamp(min=0)[:, None], 0.0).sum(1)
    order = disagreement.where(correct, -1.0).argsort(descending=True, stable=True)
    available = correct.sum()
    position = torch.arange(count, device=labels.device)
    first = torch.where(available > 0, position % available.clamp(min=1), position)
    return order[first], first, position < available


def _like(bound: Tensor | float, inputs: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device)
