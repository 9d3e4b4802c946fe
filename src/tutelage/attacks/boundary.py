"""Samples moved to a teacher's decision boundary (BSS): Heo, Lee, Yun, Choi 2019, arXiv 1805.05532."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tutelage.data.batch import Batch, hard_labels
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.term import View

Norm = Literal["first", "squared"]
OVERSHOOT = 1e-4  # the authors' eps: aims a little beyond the boundary
SMALLEST = 1e-12  # a gradient's length is taken to be no less


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
    who: Tensor | None = None,
) -> Tensor:
    """Move each input from its base class towards the target class until the network no longer says base.

    With L(x) = f_b(x) - f_k(x), a step is x <- x - eta (L + 1e-4) dL/dx / ||dL/dx||, per sample, clamped to
    [low, high]; a sample stops as soon as the largest logit is another than f_b, and costs nothing from then on.
    ``norm="first"`` divides by the length of the gradient, as the authors' code does; ``"squared"`` by its square, a
    DeepFool step that does not depend on the scale of f (the paper [from memory]).

    Args:
        network: images (B, ...) to logits (B, C). Its parameters get no gradient.
        inputs: (B, ...), in the space that the network takes.
        base, target: (B,) int64 classes, b and k.
        low, high: the range of the inputs, numbers or anything that broadcasts against them.
        steps: at most so many.
        step_size: eta.
        norm: see above.
        who: (B,) bool, the samples to move; all of them if ``None``.

    Returns:
        (B, ...), detached.
    """
    moved, places = inputs.detach().clone(), torch.arange(len(inputs), device=inputs.device)
    moving = torch.ones_like(places, dtype=torch.bool) if who is None else who
    for _ in range(steps):
        if moving.is_cpu:  # elsewhere, to find out who is still on the way would be to wait for the device
            places, moving = places[moving], moving[moving]
            if not len(places):
                break
        with torch.enable_grad():
            images = moved[places].requires_grad_()
            logits = network(images)
            gap = (logits.gather(1, base[places, None]) - logits.gather(1, target[places, None])).squeeze(1)
            (gradient,) = torch.autograd.grad(gap.sum(), images)
        moving = moving & (logits.argmax(1) == base[places])
        length = gradient.flatten(1).norm(dim=1).clamp(min=SMALLEST)
        pace = step_size * (gap.detach() + OVERSHOOT) / (length if norm == "first" else length.square())
        each = (-1, *[1] * (images.ndim - 1))
        ahead = (images.detach() - pace.view(each) * gradient).clamp(_like(low, moved), _like(high, moved))
        moved[places] = torch.where(moving.view(each), ahead, images.detach())
    return moved


def draw_targets(logits: Tensor, base: Tensor) -> Tensor:
    """Draw a class k != b for each sample with probability q_k / (1 - q_b), q = softmax(logits): (B, C) to (B,)."""
    others = logits.detach().float().scatter(1, base[:, None], float("-inf"))  # exact also where q_b rounds to 1
    return torch.multinomial(others.softmax(1), 1).squeeze(1)


class BoundarySamples(View):
    """A batch of boundary supporting samples: well understood ones, moved to the teacher's boundary.

    Taken are samples that student *and* teacher get right; of too many those where the two disagree most about the
    other classes, sum over c != b of (q_t,c - q_s,c)^2. Each is moved towards a class drawn by ``draw_targets``, in
    the space of the teacher's normalised images, whose exact range is that of pixels in [0, 1].

    The batch always has the same number of samples, so that batch normalisation has enough of them and compiled
    networks see one shape: where fewer fit, they are repeated, and only the first of each counts (``weight``). Where
    none fits, no sample is moved and none counts.

    Args:
        teacher: whose boundary it is.
        share: how many samples, as a share of the batch (at least 1).
        steps, step_size, norm: as in ``boundary_attack``.
        discard_failed: whether a sample counts only if it ends in the class it was moved towards, as in the paper [from
            memory]; the authors' code counts every one.
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
            raise ValueError(f"the share of a batch lies in (0, 1], got {share}")
        self.teacher, self.share, self.updates_statistics = teacher, share, updates_statistics
        self.steps, self.step_size, self.norm, self.discard_failed = steps, step_size, norm, discard_failed

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The boundary samples, in pixels."""
        if teacher is None:
            raise ValueError("BoundarySamples needs a teacher's outputs")
        labels = hard_labels(batch.targets)
        chosen, first, valid = select_samples(
            student["logits"], teacher["logits"], labels, max(1, round(self.share * len(batch)))
        )
        base, targets = labels[chosen].clamp(min=0), batch.targets[chosen]  # without a label a sample never counts
        target = draw_targets(teacher["logits"][chosen], base)
        mean, std = self.teacher.mean, self.teacher.std
        moved = (batch.inputs[chosen] - mean) / std
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
            who=valid,
        )
        moved = attacked[first]
        if self.discard_failed:
            with torch.no_grad():
                valid = valid & (self._logits(moved).argmax(1) == target)
        weight = valid * (len(chosen) / valid.sum().clamp(min=1))  # their mean is that over those which count
        pixels = (moved * std + mean).clamp(0, 1)
        return Batch(pixels, targets, batch.index[chosen], None, weight)

    def _logits(self, images: Tensor) -> Tensor:
        pixels = images * self.teacher.std + self.teacher.mean
        # Fewer samples move in each step, and a compiled network would be compiled anew for each number.
        return self.teacher.tap(pixels, eager=True)["logits"]


def select_samples(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Base samples: those that both networks get right, the most disputed first.

    Args:
        student, teacher: logits (B, C).
        labels: (B,) int64.
        count: how many are wanted, at most B.

    Returns:
        Their places in the batch (count,); for each the number of the first one in that place (count,); and which of
        them count (count,): not the repeated ones, where fewer fit.
    """
    right = (student.argmax(1) == labels) & (teacher.argmax(1) == labels)
    apart = (teacher.float().softmax(1) - student.float().softmax(1)).square()
    disputed = apart.scatter(1, labels.clamp(min=0)[:, None], 0.0).sum(1)
    order = disputed.where(right, -1.0).argsort(descending=True, stable=True)
    found = right.sum()
    place = torch.arange(count, device=labels.device)
    first = torch.where(found > 0, place % found.clamp(min=1), place)
    return order[first], first, place < found


def _like(bound: Tensor | float, inputs: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device)
