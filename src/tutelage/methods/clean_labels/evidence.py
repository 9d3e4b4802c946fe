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
        difference: (N,) float32 in [-1, 1], the probability of the label minus the largest other one, averaged over the
            epochs and over the networks that were trained with the sample. Wrong labels are learnt late or never, so
            that it is small for them.
        votes: (N, C) float32, the mean probabilities over all networks.
        fold: (N,) int64, the number of the fold, from 1.
        noisy: (N,) float64, DRPL's probability that the label is noisy, if its phases were trained.
    """

    probabilities: Tensor
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
    sums, counts = torch.zeros(len(split)), torch.zeros(len(split))
    parts = stratified_folds(split.labels, folds, seed=mix_seeds(run.seed, 5))
    for number, (others, fold) in enumerate(parts, start=1):
        part = split.subset(others)
        differences, model = Differences(part), run.student(number)
        learner = Learner(model, None, run.label_terms(), sample_weight=differences)
        run.fit(learner, data=replace(run.data, train=part, validation=None))
        outputs = run.predict(model, split).softmax(1)
        probabilities[fold], folds_of[fold] = outputs[fold], number
        votes += outputs / folds
        totals = differences.samples.values.cpu()
        sums[others] += totals[:, 0]
        counts[others] += totals[:, 1]
    noisy = detect(run, split, Settings(), folds + 1).noisy[1] if drpl else None
    return Evidence(probabilities, sums / counts.clamp_min(1), votes, folds_of, noisy)


class Differences(nn.Module):
    """A learner's ``sample_weight`` of 1 for each sample, which adds up the differences of P-DIFF by sample.

    It adds up those of all processes, so that each has the same sums.

    Args:
        split: what the learner is trained on.

    Attributes:
        samples: the sum of each sample's differences and their number, (N, 2) float32.
    """

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.samples = PerSample(split, torch.zeros(len(split), 2))

    @torch.no_grad()
    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        """(B,) ones."""
        batch = forward_pass.batch
        difference = probability_difference(forward_pass.student["logits"], batch.targets)
        all_differences, rows = gathered(difference), self.samples.rows(gathered(batch.index))
        self.samples.values.index_add_(0, rows, torch.stack([all_differences, torch.ones_like(all_differences)], 1))
        return torch.ones_like(difference)
