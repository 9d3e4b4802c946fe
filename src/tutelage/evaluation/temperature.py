"""Temperature scaling: Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599."""

from __future__ import annotations

import math

import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from tutelage.evaluation.metrics import only_labelled

LARGEST = 1e6  # the largest temperature; the smallest is its inverse


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 with the smallest negative log-likelihood of the labels under softmax(z / T).

        minimum over T of   - 1/n sum_i sum_k q_ik log softmax(z_i / T)_k,   q_i = (n onehot(y_i) + 1/C) / (n + 1)

    The negative log-likelihood is convex in 1 / T. The labels are smoothed by one sample in n + 1, as in Platt scaling
    (1999): if all n samples are predicted correctly, the hard labels have no minimum and T would be 0.

    Args:
        logits: z, (n, C).
        labels: (n,) int64; samples with -1 do not count.

    Returns:
        T in [1e-6, 1e6], without unit; the upper end if no positive T is better than a uniform distribution, the lower
        end if the logits differ too little.
    """
    logits, labels = only_labelled(logits, labels)
    z = logits.double()
    z = z - z.amax(1, keepdim=True)  # the same softmax, and no rounding error if all logits are equal
    count, classes = z.shape
    targets = (count * F.one_hot(labels, classes).double() + 1 / classes) / (count + 1)

    def slope(log_sharpness: float) -> float:
        """The derivative by 1 / T at T = exp(-log_sharpness), which increases."""
        probabilities = (math.exp(log_sharpness) * z).softmax(1)
        return float(((probabilities - targets) * z).sum(1).mean())

    low, high = -math.log(LARGEST), math.log(LARGEST)
    if slope(low) >= 0:
        return LARGEST
    if slope(high) <= 0:
        return 1 / LARGEST
    return math.exp(-brentq(slope, low, high))
