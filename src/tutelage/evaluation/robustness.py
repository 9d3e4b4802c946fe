"""How much accuracy is left when each image is moved against the network."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.attacks.pgd import Loss, input_gradient, pgd, zero_gradients
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.predict import labelled_samples
from tutelage.models.modes import eval_mode

ALARMING = 0.05  # a share of zero gradients that is warned of [ours]


@dataclass(frozen=True, slots=True)
class Robustness:
    """What an attack of several radii leaves.

    Attributes:
        clean: the accuracy without an attack, in [0, 1].
        accuracies: radius to the accuracy that is left, the radii rising; it never rises.
        zero_gradient_share: the share of the samples whose input gradient is exactly 0 before they are moved. Where it
            is not 0 the accuracies may be overestimated.
    """

    clean: float
    accuracies: Mapping[float, float]
    zero_gradient_share: float

    @property
    def auac(self) -> float:
        """``auac`` of the accuracies and of the clean one at 0."""
        return auac({0.0: self.clean, **self.accuracies})


def auac(accuracies: Mapping[float, float]) -> float:
    """The area under the curve of accuracy over perturbation size (Bouniot et al. 2020, arXiv 2102.03156).

    AUAC = 1/e_max times the integral of the accuracy from 0 to e_max, the largest radius, by the trapezoid rule. Two
    defences can change places with the radius that is chosen; this looks at all of them, and depends on e_max instead.

    Args:
        accuracies: radius to accuracy, in any order; that of radius 0 is the clean one. The accuracy at a radius is
            that against perturbations up to it, so that it never rises.

    Returns:
        In the accuracies' unit.

    Raises:
        TutelageError: radius 0 is missing, or the only one; a radius is negative; or the accuracy rises.
    """
    curve = sorted(accuracies.items())
    radii = [radius for radius, _ in curve]
    if len(curve) < 2 or radii[0] != 0:
        raise TutelageError(f"the curve needs the accuracy at radius 0 and at one above it; its radii are {radii}")
    for (radius, before), (further, after) in pairwise(curve):
        if not after <= before:
            raise TutelageError(
                f"the accuracy may not rise with the radius: it is {before} at {radius} and {after} at {further}; "
                "count a sample that breaks at a radius as broken at every larger one"
            )
    return sum((far - near) * (a + b) / 2 for (near, a), (far, b) in pairwise(curve)) / radii[-1]


@default_settings()
def pgd_accuracies(
    model: nn.Module,
    split: Split,
    radii: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    steps: int = 20,
    restarts: int = 1,
    loss: Loss | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 2,
) -> Robustness:
    """The accuracy on a part against ``attacks.pgd`` of each radius.

    The threat: every value of the image may be moved by the radius within [0, 1], by somebody who knows the network and
    its normalisation; untargeted. A sample that is misclassified at a radius counts as misclassified at every larger
    one, where that image is allowed too. What is found is an upper bound on the accuracy against the worst image. To
    claim a defence, take 50 to 100 steps, 5 or more restarts, and other attacks than this one.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it is on ``device`` already.
        split: the part; samples without a label are left out.
        radii: of the range [0, 1] of the pixels, in any order.
        device: where to compute.
        steps, restarts, loss: as in ``pgd``, whose step size is 2.5 radius / steps.
        seed: of the starts, which do not depend on the batch size.
        batch_size: images at a time; of influence on speed and memory alone.
        workers: processes that read files.

    Warns:
        TutelageWarning: a large share of the samples has an input gradient of exactly 0.

    Raises:
        NonFiniteError: a logit or a gradient is NaN or infinite.
        TutelageError: no sample has a label.
        ValueError: as ``pgd``.
    """
    split = labelled_samples(split)
    draws = {r: torch.Generator().manual_seed(mix_seeds(seed, zlib.crc32(f"{r}".encode()))) for r in sorted(set(radii))}
    left, clean, hidden = dict.fromkeys(draws, 0), 0, 0
    for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
        with eval_mode(model):
            logits, gradient = input_gradient(model, batch.inputs, batch.targets, loss)
        standing = logits.argmax(1) == batch.targets
        clean += int(standing.sum())
        hidden += int(zero_gradients(gradient).sum())
        images, labels = batch.inputs[standing], batch.targets[standing]
        for radius, generator in draws.items():
            if not len(labels):
                break
            moved = pgd(
                model, images, labels, radius=radius, steps=steps, restarts=restarts, loss=loss, generator=generator
            )
            with eval_mode(model), torch.no_grad():
                standing = model(moved).argmax(1) == labels
            images, labels = images[standing], labels[standing]
            left[radius] += len(labels)
    share = hidden / len(split)
    if share > ALARMING:
        warnings.warn(
            f"{share:.0%} of the {len(split)} attacked samples have an input gradient of exactly 0: the network hides "
            "its gradient or its softmax is saturated, and its accuracy under attack is overestimated",
            TutelageWarning,
            stacklevel=2,
        )
    return Robustness(clean / len(split), {radius: count / len(split) for radius, count in left.items()}, share)
