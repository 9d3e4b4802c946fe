"""Learning with noisy labels from the distribution of probability differences."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED
from tutelage.data.loader import Batches
from tutelage.errors import TutelageError
from tutelage.methods import Share, method
from tutelage.models.outputs import at_least_float32
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner, Lesson
from tutelage.training.processes import gathered
from tutelage.training.run import Run

BINS = 221  # of width 0.01 from -1.1 on: differences of -1 and 1 lie well inside


@method(paper="Hu, Zhao, Huang, Zhang 2020, arXiv 2009.06382", family="noisy labels", evidence="code")
def pdiff(
    run: Run,
    *,
    noise_rate: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ramp: Annotated[int, Field(ge=1)] = 20,
    window: Annotated[int, Field(ge=1)] = 100,
    saturation: Share = 0.9,
    mean_over: Literal["batch", "selected"] = "batch",
) -> Tapped:
    """Sample selection: samples whose label is the least probable beside the best other class are left out.

    L = 1/B sum_i w_i CE(z_i, y_i) with w_i = 1 where d_i = p_i[y_i] - max over k != y_i of p_i[k], p = softmax(z), is
    not among the lowest share R of the differences of the last batches, this one included, and w_i = 0 where it is. No
    gradient flows through d. With a known noise rate tau, R = tau min(1, e / T_k) in epoch e. Without one, R is the
    share of differences up to a threshold, which rises as -1 + min(1, e / T_k); once e > T_k, R stays as it is while
    the mean of abs(d) is at least zeta. Nothing is left out until the window is full. One network, one pass.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        noise_rate: tau, the share of wrong labels; ``None`` reads it off the differences.
        ramp: T_k, in epochs; the authors' code has 20 of 200. In a run of fewer it is all of them. Where labels are
            left out before the network has learnt something, whole classes can be lost for good.
        window: how many batches the distribution is of; the authors' code has 100, their paper a part of an epoch
            [from memory]. Never more than T_k epochs have, so that it is full when the ramp ends [ours].
        saturation: zeta, of use without a noise rate.
        mean_over: "batch" divides by B, as the authors' code does, so that steps shrink with what is left out;
            "selected" by the sum of w, a variant.

    Deviations: none known from the authors' Caffe layer beside the bound on the window. As there, an iteration counts
    when it begins, so that e goes up one step before an epoch ends, and samples without a label are in no distribution.
    """
    if run.data.train.labels.ndim == 2:
        raise TutelageError("P-DIFF ranks samples by the class they are labelled with, and these labels are soft")
    student = run.student()
    batches = Batches(run.data.train, batch_size=run.recipe.batch_size, world=run.processes.world)
    weighting = ProbabilityDifference(
        batches.batch_size,
        len(batches),
        run.epochs,
        noise_rate=noise_rate,
        ramp=ramp,
        window=window,
        saturation=saturation,
        mean_over=mean_over,
    )
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, sample_weight=weighting))
    return student


class ProbabilityDifference(nn.Module):
    """A learner's ``sample_weight``: 0 for the samples whose labels look wrong, by their rank in the last batches.

    Its window is of the samples of all processes, so that all draw the same line. Nothing waits for the device.

    Args:
        batch_size: samples a step, over all processes.
        steps: steps an epoch.
        epochs: epochs of the fit.
        noise_rate, ramp, window, saturation, mean_over: as in ``pdiff``.

    Attributes:
        ring: (window, batch_size) int64, the bins of the last batches' differences; -1 for a sample without a label.
        rate: () float32, R as it was last used.
        index, weights: (B,) int64 and (B,) float32, this process's samples of the last batch and what they counted.
    """

    ring: Tensor
    rate: Tensor
    index: Tensor
    weights: Tensor

    def __init__(
        self,
        batch_size: int,
        steps: int,
        epochs: int,
        *,
        noise_rate: float | None = None,
        ramp: int = 20,
        window: int = 100,
        saturation: float = 0.9,
        mean_over: Literal["batch", "selected"] = "batch",
    ) -> None:
        super().__init__()
        self.steps, self.epochs, self.noise_rate = steps, epochs, noise_rate
        self.ramp_epochs = min(ramp, epochs)
        self.saturation, self.mean_over = saturation, mean_over
        self.register_buffer("ring", torch.full((min(window, self.ramp_epochs * steps), batch_size), -1))
        self.register_buffer("rate", torch.zeros(()))

    @torch.no_grad()
    def forward(self, lesson: Lesson, progress: float) -> Tensor:
        """(B,) weights: 0 or 1, or 0 or B / sum(w) with ``mean_over="selected"``."""
        done = round(progress * self.epochs * self.steps)  # a whole number but for rounding
        targets = lesson.batch.targets
        bins = bin_of(self.differences(lesson.student["logits"], targets)).masked_fill(targets == UNLABELLED, -1)
        everyone = gathered(bins)
        self.ring[done % len(self.ring)] = everyone
        self.index, self.weights = lesson.batch.index, torch.ones(len(bins), device=bins.device)
        if done + 1 >= len(self.ring):
            share = self._cumulative()
            rate = self._drop_rate(share, (done + 1) // self.steps)
            self.weights = (share[bins.clamp_min(0)] > rate).float()  # the first bin above R, and those behind it
            if self.mean_over == "selected":
                kept = (share[everyone.clamp_min(0)] > rate) & (everyone >= 0)
                self.weights *= len(everyone) / kept.sum().clamp_min(1)
        return self.weights

    def differences(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What samples are ranked by, (B,) in [-1, 1]."""
        return probability_difference(logits, targets)

    def _cumulative(self) -> Tensor:
        """The share of the window's differences in each bin or a lower one, (221,)."""
        seen = self.ring.flatten() + 1  # what has no label is counted in a bin of its own, and left out
        counts = torch.zeros(BINS + 1, dtype=torch.int64, device=seen.device).scatter_add_(
            0, seen, torch.ones_like(seen)
        )
        return counts[1:].cumsum(0) / counts[1:].sum().clamp_min(1)

    def _drop_rate(self, share: Tensor, epoch: int) -> Tensor:
        """R, ()."""
        risen = min(epoch, self.ramp_epochs)
        if self.noise_rate is not None:
            return self.rate.fill_(self.noise_rate * risen / self.ramp_epochs)
        now = share[10 + 100 * risen // self.ramp_epochs]  # the bins of -1 and 0 are 10 and 110
        if epoch > self.ramp_epochs:
            middles = (torch.arange(BINS, device=share.device) - 109.5) / 100
            mean = (share.diff(prepend=share.new_zeros(1)) * middles.abs()).sum()
            now = self.rate.where(mean >= self.saturation, now)
        return self.rate.copy_(now)


def probability_difference(logits: Tensor, targets: Tensor) -> Tensor:
    """d = p[y] - max over k != y of p[k], p = softmax(z), per sample; without gradient.

    Args:
        logits: (B, C).
        targets: (B,) int64; of a sample without a label (-1) the value means nothing.

    Returns:
        (B,) in [-1, 1].
    """
    probabilities = at_least_float32(logits.detach()).softmax(1)
    labels = targets.clamp_min(0)[:, None]
    others = probabilities.scatter(1, labels, 0.0).amax(1)
    return probabilities.gather(1, labels).squeeze(1) - others


def bin_of(differences: Tensor) -> Tensor:
    """The bins of differences, (B,) int64 in 0..220; what is not finite lands in one of them too."""
    return (100 * differences + 110).long().clamp(0, BINS - 1)
