"""Metrics of saliency maps: CC, NSS, SIM, KL divergence and three areas under ROC curves, for batches of maps.

The definitions are those of the MIT saliency benchmark and of pysaliency (Kümmerer, Wallis, Bethge 2018), with these
choices: constant maps score 0 (CC, NSS) and 0.5 (areas) instead of dividing by zero; equal predictions share a rank
instead of being ordered by random noise; and all negatives count instead of a random sample of them, so each area
is the expected value of the sampled one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError

EPSILON = 2.2204e-16  # of the benchmark's KL divergence


def exact(values: Tensor) -> Tensor:
    """The values as float64, or as float32 on devices without it."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def cc(prediction: Tensor, density: Tensor) -> Tensor:
    """Pearson's correlation coefficient over the pixels of each image; 0 if one of the maps is constant.

    Args:
        prediction, density: (B, H, W).

    Returns:
        (B,) in [-1, 1]; NaN for a density that is NaN.
    """
    standard, target = _standardised(prediction), _standardised(density)
    return (standard * target).mean(1)


def nss(prediction: Tensor, fixations: Tensor) -> Tensor:
    """Normalised scanpath saliency: the mean over fixations of (prediction - mean) / standard deviation.

    Mean and standard deviation (of the population) are over the pixels. A constant prediction has 0.

    Args:
        prediction: (B, H, W).
        fixations: (B, H, W), how many fixations fell on each pixel.

    Returns:
        (B,), in standard deviations; NaN for an image without fixations.
    """
    counts = exact(fixations).flatten(1)
    return (_standardised(prediction) * counts).sum(1) / counts.sum(1)


def sim(prediction: Tensor, density: Tensor) -> Tensor:
    """Similarity (histogram intersection): the sum over pixels of min(p, q), both scaled to sum 1.

    Args:
        prediction, density: (B, H, W), 0 or more; a map of zeros counts as constant.

    Returns:
        (B,) in [0, 1]; NaN for a density that is NaN.
    """
    return torch.minimum(as_density(prediction), as_density(density)).sum(1)


def kl(prediction: Tensor, density: Tensor) -> Tensor:
    """KL divergence of the prediction from the density: the sum over pixels of q log(q / (p + eps) + eps).

    p is the prediction and q the density, both scaled to sum 1. eps = 2.2e-16 is the benchmark's: a prediction of 0
    where the density is positive costs much, but not infinitely much.

    Args:
        prediction, density: (B, H, W), 0 or more; a map of zeros counts as constant.

    Returns:
        (B,) nats; NaN for a density that is NaN.
    """
    p, q = as_density(prediction), as_density(density)
    return (q * (q / (p + EPSILON) + EPSILON).log()).sum(1)


def auc_judd(prediction: Tensor, fixations: Tensor) -> Tensor:
    """AUC-Judd: fixated pixels against all other pixels, with a threshold at the value of each fixated pixel.

    The curve is linear between these thresholds, as in the benchmark, which makes the area larger than the exact one
    by at most 1 / (2 n) for n fixated pixels. A pixel counts once however often it was fixated.

    Args:
        prediction: (B, H, W).
        fixations: (B, H, W), how many fixations fell on each pixel.

    Returns:
        (B,) in [0, 1], 0.5 for a constant prediction; NaN without a fixated or without another pixel.
    """
    return Ranks(prediction).auc_judd(fixations)


def auc_borji(prediction: Tensor, fixations: Tensor) -> Tensor:
    """AUC-Borji: the probability that a fixated pixel is predicted higher than a random pixel; ties count half.

    Args:
        prediction: (B, H, W).
        fixations: (B, H, W), how many fixations fell on each pixel; a fixated pixel counts once.

    Returns:
        (B,) in [0, 1], 0.5 for a constant prediction; NaN for an image without fixations.
    """
    return Ranks(prediction).auc_borji(fixations)


def auc_shuffled(prediction: Tensor, fixations: Tensor, others: Tensor) -> Tensor:
    """Shuffled AUC: the probability that a fixation's pixel is predicted higher than one of another image's fixations.

    Ties count half. Since most fixations of all images are near the centre, a prediction of the centre alone has 0.5.

    Args:
        prediction: (B, H, W).
        fixations: (B, H, W), how many fixations fell on each pixel of the image.
        others: (B, H, W), how many fixations fell on each pixel of the other images.

    Returns:
        (B,) in [0, 1], 0.5 for a constant prediction; NaN if there are no fixations or no others.
    """
    return Ranks(prediction).auc_shuffled(fixations, others)


def as_density(values: Tensor) -> Tensor:
    """Maps (B, H, W) of 0 or more as densities over pixels (B, H W) of sum 1; a map of zeros becomes constant.

    Raises:
        TutelageError: a negative value.
    """
    flat = exact(values).flatten(1)
    if bool((flat < 0).any()):
        raise TutelageError(
            f"a saliency map has the value {float(flat.nan_to_num(0).min()):g}; a density is 0 or more: pass "
            "probabilities, not logits"
        )
    total = flat.sum(1, keepdim=True)
    return (flat / total).where(total != 0, 1 / flat.shape[1])


def centre_prior(height: int, width: int) -> Tensor:
    """A centred Gaussian (H, W) whose standard deviations are a quarter of the sides: what a prediction has to beat."""
    rows, columns = ((2 * torch.arange(size) + 1 - size) / (2 * size) for size in (height, width))  # -1/2 to 1/2
    return torch.exp(-8 * (rows[:, None].square() + columns.square()))


def _standardised(values: Tensor) -> Tensor:
    """(B, H, W) to (B, H W) of mean 0 and population variance 1; zeros for a constant map."""
    flat = exact(values).flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    constant = flat.amax(1, keepdim=True) == flat.amin(1, keepdim=True)
    return (centred / deviation).masked_fill(constant, 0.0)


class Ranks:
    """The pixels of each prediction (B, H, W) in descending order, for several areas.

    Equal values form a group, and each pixel knows where its group begins and ends.
    """

    def __init__(self, prediction: Tensor) -> None:
        values = prediction.flatten(1)
        ranked, self._order = values.sort(1, descending=True)
        differs = ranked[:, 1:] != ranked[:, :-1]
        place = torch.arange(values.shape[1], device=values.device).expand_as(values)
        edge = torch.ones_like(differs[:, :1])
        begins, ends = torch.cat([edge, differs], 1), torch.cat([differs, edge], 1)
        self._first = place.where(begins, 0).cummax(1).values
        self._last = place.where(ends, values.shape[1]).flip(1).cummin(1).values.flip(1)

    def auc_judd(self, fixations: Tensor) -> Tensor:
        """As the function of this name."""
        positive = self._ordered(fixations > 0)
        _, upto = self._before_and_upto(1 - positive)
        rates = upto / (1 - positive).sum(1, keepdim=True)
        earlier = self._before(torch.cummax(rates * positive, 1).values)  # the rate at the threshold before this one
        return 1 - (positive * (rates + earlier)).sum(1) / 2 / positive.sum(1)

    def auc_borji(self, fixations: Tensor) -> Tensor:
        """As the function of this name."""
        return self._area(fixations > 0, torch.ones_like(fixations))

    def auc_shuffled(self, fixations: Tensor, others: Tensor) -> Tensor:
        """As the function of this name."""
        return self._area(fixations, others)

    def _area(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """P(positive > negative) + P(equal) / 2 for pixels drawn with these weights, each (B, H, W)."""
        positive, negative = self._ordered(positives), self._ordered(negatives)
        before, upto = self._before_and_upto(negative)
        higher = (positive * (before + upto)).sum(1) / 2
        return 1 - higher / positive.sum(1) / negative.sum(1)

    def _ordered(self, values: Tensor) -> Tensor:
        """Values of pixels (B, H, W) in descending order of the prediction, (B, H W)."""
        return exact(values).flatten(1).gather(1, self._order)

    def _before(self, running: Tensor) -> Tensor:
        """A running value at the end of the group before that of each pixel; 0 for the first group."""
        return F.pad(running, (1, 0)).gather(1, self._first)

    def _before_and_upto(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of all pixels before each one's group, and of these with the group."""
        total = weights.cumsum(1)
        return self._before(total), total.gather(1, self._last)
