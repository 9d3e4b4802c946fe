"""Evidence that labels are wrong, from networks that are each trained without one fold of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.data.loader import mix_seeds
from tutelage.data.per_sample import PerSample
from tutelage.data.stratified import check_folds, stratified_folds
from tutelage.methods.drpl.phases import DETECTION_FITS, Settings, detect
from tutelage.methods.pdiff import probability_difference
from tutelage.training.learner import ForwardPass, Learner
from tutelage.training.processes import gathered
from tutelage.training.run import Run

FURTHER_FITS: Mapping[str, int] = {"drpl": DETECTION_FITS}
"""The fits for a kind of evidence that the networks of the folds do not give."""


@dataclass(frozen=True)
class Evidence:
    """What the networks of all folds say about each sample of a split whose samples all have a label.

    Attributes:
        probabilities: (N, C) float32, by the network that was trained without the sample.
        trajectory: (N, C) float32, the mean probabilities over the epochs and over the networks that were trained with
            the sample. Wrong labels are learnt late or never, so that those of the true class are larger.
        difference: (N,) float32 in [-1, 1], the probability of the label minus the largest other one, averaged in the
            same way.
        votes: (N, C) float32, the mean probabilities over all networks.
        fold: (N,) int64, the number of the fold, from 1.
        noisy: (N,) float64, DRPL's probability that the label is noisy, if its phases were trained.
    """

    probabilities: Tensor
    trajectory: Tensor
    difference: Tensor
    votes: Tensor
    fold: Tensor
    noisy: Tensor | None = None


def gather(run: Run, split: Split, folds: int, *, drpl: bool = False) -> Evidence:
    """Train one network for each fold, on all other folds, with the label loss.

    Args:
        run: its data are replaced by parts of the split.
        split: samples with labels.
        folds: the number of networks.
        drpl: whether to train the first two phases of DRPL too, with its default settings.

    Raises:
        TutelageError: a class has fewer samples than there are folds.
    """
    check_folds(split.labels, run.data.classes, folds)
    probabilities = torch.empty(len(split), run.data.num_classes)
    votes = torch.zeros_like(probabilities)
    folds_of = torch.zeros(len(split), dtype=torch.int64)
    sums = torch.zeros(len(split), run.data.num_classes + 2)
    parts = stratified_folds(split.labels, folds, seed=mix_seeds(run.seed, 5))
    for number, (others, fold) in enumerate(parts, start=1):
        part = split.subset(others)
        recorder, model = Trajectories(part, run.data.num_classes), run.student(number)
        learner = Learner(model, None, run.label_terms(), sample_weight=recorder)
        run.fit(learner, data=replace(run.data, train=part, validation=None))
        outputs = run.predict(model, split).softmax(1)
        probabilities[fold], folds_of[fold] = outputs[fold], number
        votes += outputs / folds
        sums[others] += recorder.samples.values.cpu()
    noisy = detect(run, split, Settings(), folds + 1).noisy[1] if drpl else None
    means = sums / sums[:, -1:].clamp_min(1)
    return Evidence(probabilities, means[:, :-2], means[:, -2], votes, folds_of, noisy)


class Trajectories(nn.Module):
    """A learner's ``sample_weight`` of 1 for each sample, which adds up what the network says of it in each epoch.

    It adds up those of all processes, so that each has the same sums.

    Args:
        split: what the learner is trained on.
        classes: C, their number.

    Attributes:
        samples: the sums of each sample's probabilities and of its differences of P-DIFF, and their number,
            (N, C + 2) float32.
    """

    def __init__(self, split: Split, classes: int) -> None:
        super().__init__()
        self.samples = PerSample(split, torch.zeros(len(split), classes + 2))

    @torch.no_grad()
    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        """(B,) ones."""
        batch, logits = forward_pass.batch, forward_pass.student["logits"].float()
        difference = probability_difference(logits, batch.targets)
        values = torch.cat([logits.softmax(1), difference[:, None], torch.ones_like(difference)[:, None]], 1)
        self.samples.values.index_add_(0, self.samples.rows(gathered(batch.index)), gathered(values))
        return torch.ones_like(difference)
