"""Which labels are probably wrong, by the evidence of networks that were trained on all labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tutelage.methods.clean_labels.evidence import Evidence
from tutelage.methods.clean_labels.noise import (
    SMALLEST,
    calibrated,
    noise_matrix,
    normalised,
    shrunk,
    symmetric_share,
    true_class_posterior,
)

By = Literal["posterior", "out_of_sample", "differences", "agreement", "drpl"]

Repair = Literal["soften", "remove", "replace"]
"""What happens to labels before the student is trained, see ``clean_labels``."""


@dataclass(frozen=True)
class Verdict:
    """What is probably wrong.

    Attributes:
        wrong: (N,) float64, the probability that the label is wrong.
        suggested: (N,) int64, the most probable true class other than the label.
        soft_labels: (N, C) float64, the estimated distribution of the true class, see ``judge``; rows sum to 1, or are
            0 where the two kinds of networks disagree about the most probable class.
        support: by kind of evidence (N,) float32 in [0, 1]: how much it supports the label.
        noise_matrix: (C, C) float64, the estimated probability of each label (column) for samples of each true class
            (row).
        fold_matrices: (folds, C, C) float64, the same estimated from the samples of each fold.
    """

    wrong: Tensor
    suggested: Tensor
    soft_labels: Tensor
    support: Mapping[str, Tensor]
    noise_matrix: Tensor
    fold_matrices: Tensor


def judge(evidence: Evidence, labels: Tensor, by: By = "posterior") -> Verdict:
    """Estimate for each label the probability that it is wrong.

    There are two distributions of each sample's true class, see ``true_class_posterior``: one from the network that was
    trained without the sample, whose probabilities are calibrated first, and one from the trajectories of the networks
    that were trained with it. The first knows the class less well; the second has partly learnt the label itself. Their
    errors differ, so that their normalised geometric mean is better than both.

    Each kind of evidence is a number in [0, 1] that is small for wrong labels; the chosen one orders the labels:

    - posterior: the probability of the label in the geometric mean;
    - out_of_sample: the probability of the label by the network that was trained without the sample;
    - differences: (d + 1) / 2, where d is P-DIFF's difference averaged over epochs and networks;
    - agreement: the mean probability of the label over all networks;
    - drpl: 1 - P(noisy) of DRPL, if its phases were trained.

    The probability that a label is wrong is the mean of two estimates, made monotone in this order by isotonic
    regression: that of the first distribution, which doubts slightly too many labels, and that of the geometric mean,
    which doubts too few.

    The soft labels are the geometric mean, where both distributions have the same most probable class. Elsewhere they
    are 0: such samples would teach a student the errors of the networks that judge them.

    Args:
        evidence: of all networks.
        labels: y, (N,) int64 class numbers.
        by: the evidence that orders the labels.
    """
    from sklearn.isotonic import IsotonicRegression

    own = labels[:, None]
    probabilities = calibrated(evidence.probabilities, labels)
    matrix = noise_matrix(probabilities, labels)
    share = symmetric_share(probabilities, matrix, labels)
    matrix = shrunk(matrix, labels, share)
    out_of_sample, trajectory = (
        true_class_posterior(p, matrix, labels) for p in (probabilities, evidence.trajectory.double())
    )
    posterior = normalised((out_of_sample.clamp_min(SMALLEST) * trajectory.clamp_min(SMALLEST)).sqrt())
    support = {
        "posterior": posterior.gather(1, own).squeeze(1).float(),
        "out_of_sample": evidence.probabilities.gather(1, own).squeeze(1),
        "differences": (evidence.difference + 1) / 2,
        "agreement": evidence.votes.gather(1, own).squeeze(1),
    }
    if evidence.noisy is not None:
        support["drpl"] = (1 - evidence.noisy).float()
    score = _ranks(support[by])  # close values fail in IsotonicRegression
    wrong = 1 - ((out_of_sample + posterior) / 2).gather(1, own).squeeze(1)
    ordered = IsotonicRegression(increasing=False).fit_transform(score.numpy(), wrong.numpy())
    members = [evidence.fold == fold for fold in sorted({*evidence.fold.tolist()})]
    by_fold = [shrunk(noise_matrix(probabilities[rows], labels[rows]), labels, share) for rows in members]
    return Verdict(
        torch.from_numpy(ordered).clamp(0, 1),
        posterior.scatter(1, own, -1.0).argmax(1),
        posterior * (out_of_sample.argmax(1) == trajectory.argmax(1))[:, None],
        support,
        matrix,
        torch.stack(by_fold),
    )


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, equal values sharing their mean rank, (N,) float64, exact multiples of 1/2."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy()))
