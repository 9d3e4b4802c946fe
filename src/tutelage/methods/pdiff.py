"""Learning with noisy labels by the distribution of probability differences."""

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
from tutelage.training.learner import ForwardPass, Learner
from tutelage.training.processes import gathered
from tutelage.training.run import Run

BINS = 221  # of width 0.01, from -1.1: differences of -1 and 1 are well inside


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
    """P-DIFF (label noise): omit samples whose label is much less probable than the best other class.

        L = 1/B sum_i w_i CE(z_i, y_i),   d_i = p_i[y_i] - max over k != y_i of p_i[k],   p = softmax(z)

    w_i = 0 if d_i is among the lowest share R of the differences of the last batches, including the current one, and 1
    otherwise. No gradient flows through d. With a known noise rate tau, R = tau min(1, e / T_k) in epoch e. Otherwise R
    is the share of differences up to the threshold -1 + min(1, e / T_k); once e > T_k, R is kept constant while the
    mean of abs(d) is at least zeta. No sample is omitted until the window is full. There is one network and one pass.
    The weights judge labels: in a learner of your own, a term that reads none (soft targets of a teacher, for example)
    is better ``for_all_samples()`` [inferred]. Here the label loss is the only term.

    Args:
        run: the run; a teacher is not used.
        noise_rate: tau, the share of wrong labels; ``None`` estimates R from the differences.
        ramp: T_k, in epochs, at most those of the run; the authors' code has 20 of 200. If samples are omitted before
            the network has learnt anything, whole classes can be lost for good.
        window: the number of batches of the distribution; 100 in the authors' code, part of an epoch in their paper
            [from memory]. At most the batches of T_k epochs, so that it is full when the ramp ends (our choice).
        saturation: zeta; not used with a noise rate.
        mean_over: "batch" divides by B, as in the authors' code, so that steps shrink as samples are omitted;
            "selected" divides by the sum of w, a variant.

    Deviations: the bound on the window; otherwise none known from the authors' Caffe layer. As there, an iteration
    counts when it begins, so that e increases one step before the end of an epoch, and samples without a label are not
    in the distribution.
    """
    if run.data.train.labels.ndim == 2:
        raise TutelageError("P-DIFF needs class numbers as labels, and these labels are soft; use their argmax")
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
    """A learner's ``sample_weight``: 0 for samples whose label is probably wrong, by their rank in the last batches.

    The window holds the samples of all processes, which therefore use the same threshold. Nothing waits for the device.

    Args:
        batch_size: samples per step, over all processes.
        steps: steps per epoch.
        epochs: epochs of the fit.
        noise_rate, ramp, window, saturation, mean_over: as in ``pdiff``.

    Attributes:
        ring: (window, batch_size) int64, the bins of the last batches' differences; -1 for a sample without a label.
        rate: () float32, the last value of R.
        index, weights: (B,) int64 and (B,) float32, the samples of this process in the last batch and their weights.
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
    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        """(B,) weights: 0 or 1, or 0 or B / sum(w) with ``mean_over="selected"``."""
        step = round(progress * self.epochs * self.steps)  # a whole number except for rounding
        targets = forward_pass.batch.targets
        bins = bin_of(self.differences(forward_pass.student["logits"], targets)).masked_fill(targets == UNLABELLED, -1)
        global_bins = gathered(bins)
        self.ring[step % len(self.ring)] = global_bins
        self.index, self.weights = forward_pass.batch.index, torch.ones(len(bins), device=bins.device)
        if step + 1 >= len(self.ring):
            share = self._cumulative()
            rate = self._drop_rate(share, (step + 1) // self.steps)
            self.weights = (share[bins.clamp_min(0)] > rate).float()  # 1 from the first bin above R on
            if self.mean_over == "selected":
                selected = (share[global_bins.clamp_min(0)] > rate) & (global_bins >= 0)
                self.weights *= len(global_bins) / selected.sum().clamp_min(1)
        return self.weights

    def differences(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The values by which samples are ranked, (B,) in [-1, 1]."""
        return probability_difference(logits, targets)

    def _cumulative(self) -> Tensor:
        """The share of the window's differences in each bin and those below it, (221,)."""
        bins = self.ring.flatten() + 1  # bin 0 counts the samples without a label, which are ignored
        counts = torch.zeros(BINS + 1, dtype=torch.int64, device=bins.device).scatter_add_(
            0, bins, torch.ones_like(bins)
        )
        return counts[1:].cumsum(0) / counts[1:].sum().clamp_min(1)

    def _drop_rate(self, share: Tensor, epoch: int) -> Tensor:
        """Compute R, ()."""
        ramped = min(epoch, self.ramp_epochs)
        if self.noise_rate is not None:
            return self.rate.fill_(self.noise_rate * ramped / self.ramp_epochs)
        rate = share[10 + 100 * ramped // self.ramp_epochs]  # the bins of -1 and 0 are 10 and 110
        if epoch > self.ramp_epochs:
            centres = (torch.arange(BINS, device=share.device) - 109.5) / 100
            mean = (share.diff(prepend=share.new_zeros(1)) * centres.abs()).sum()
            rate = self.rate.where(mean >= self.saturation, rate)
        return self.rate.copy_(rate)


def probability_difference(logits: Tensor, targets: Tensor) -> Tensor:
    """d = p[y] - max over k != y of p[k], p = softmax(z), per sample; without gradient.

    Args:
        logits: (B, C).
        targets: (B,) int64; the value is arbitrary for a sample without a label (-1).

    Returns:
        (B,) in [-1, 1].
    """
    probabilities = at_least_float32(logits.detach()).softmax(1)
    labels = targets.clamp_min(0)[:, None]
    best_other = probabilities.scatter(1, labels, 0.0).amax(1)
    return probabilities.gather(1, labels).squeeze(1) - best_other


def bin_of(differences: Tensor) -> Tensor:
    """The bins of differences, (B,) int64 in 0..220, also for values that are not finite."""
    return (100 * differences + 110).long().clamp(0, BINS - 1)
