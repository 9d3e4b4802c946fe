"""Instance-dependent label noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.conditions.condition import Labels, stream
from tutelage.data.conditions.noise import LabelNoise
from tutelage.data.data import Data

Numbers = NDArray[np.float64]

STD = 0.1  # of the samples' flip rates, in every experiment of the paper
CHUNK = 256  # images projected at once


@dataclass(frozen=True)
class InstanceNoise(LabelNoise):
    """Instance-dependent noise: a wrong label depends on the image; about ``rate`` of the labels are wrong.

    The noise of the experiments of Xia et al. (2020, "Part-dependent label noise", arXiv 2006.07836), which many
    papers use. For sample i with pixels x_i and label y::

        q_i ~ N(rate, 0.1^2) truncated to [rate - h, rate + h], h = min(rate, 1 - rate)   its flip rate
        W_y ~ N(0, 1), S x C, one for each class y                                       directions
        z_i = normalised pixels of x_i, (S,), S = H W channels
        p_i = softmax of z_i W_y over the C - 1 classes other than y
        the label stays y with probability 1 - q_i and becomes k with probability q_i p_i[k]

    Pixels are normalised with the training split's own mean and standard deviation by channel. The scores z_i W_y
    have a spread of about sqrt(S), so that p_i is nearly 1 for one class: images that look alike are mistaken for
    the same class.

    Deviation: the paper truncates q to [0, 1], so that its mean exceeds a rate below 0.2 (0.129 for a rate of 0.1).
    Here the interval lies evenly about the rate, and the mean is the rate. From 0.3 to 0.7 the two differ by less
    than 0.3 % of the samples.

    Which labels flip depends on the seed and the number of samples alone; what they become, on the images and on W.
    The labels that flip at a lower rate also flip at a higher one, and to the same classes.
    """

    def _relabel(self, data: Data, before: Labels) -> Labels:
        draws, coins, choices = stream("InstanceNoise", self.seed).random((3, len(before)))
        flips = np.flatnonzero((coins < flip_rates(draws, self.rate)) & (before >= 0))
        after = before.copy()
        for label in np.unique(before[flips]).tolist():
            directions = self._directions(data, label)
            indices = flips[before[flips] == label]
            for chunk in np.array_split(indices, -(-len(indices) // CHUNK)):
                scores = (_normalised(data, torch.from_numpy(chunk)) @ directions).double().numpy()
                after[chunk] = _choose(scores, label, choices[chunk])
        return after

    def _directions(self, data: Data, label: int) -> Tensor:
        """W_y, (S, C) float32."""
        size = (int(np.prod(data.image_shape)), data.num_classes)
        generator = stream(f"InstanceNoise {label}", self.seed)
        return torch.from_numpy(generator.standard_normal(size, dtype=np.float32))


def flip_rates(draws: Numbers, rate: float) -> Numbers:
    """Quantiles of N(rate, 0.1^2) truncated evenly about the rate to what fits into [0, 1]: (N,) in [0, 1) to (N,)."""
    from scipy.special import ndtr, ndtri

    low = ndtr(-min(rate, 1 - rate) / STD)
    quantiles: Numbers = rate + STD * ndtri(low + draws * (1 - 2 * low))
    return quantiles


def _normalised(data: Data, indices: Tensor) -> Tensor:
    """The pixels of these training images, (B, H W channels) float32, with mean 0 and deviation 1 by channel."""
    mean, std = (torch.tensor(values) for values in data.mean_std)
    pixels = data.train.inputs[indices].cpu().float() / 255
    return ((pixels - mean) / std).flatten(1)


def _choose(scores: Numbers, label: int, draws: Numbers) -> Labels:
    """A class other than ``label`` from the softmax of each row of scores (B, C), by draws (B,) in [0, 1)."""
    scores[:, label] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    cumulative = weights.cumsum(1)
    cumulative /= cumulative[:, -1:]
    classes: Labels = (cumulative <= draws[:, None]).sum(1)
    return classes
