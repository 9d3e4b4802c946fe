"""How much accuracy is left when each image is moved against the network."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tutelage.attacks.pgd import input_gradient, pgd, zero_gradients
from tutelage.data.data import Split
from tutelage.data.loader import in_order, mix
from tutelage.errors import TutelageWarning
from tutelage.evaluation.predict import labelled
from tutelage.models.modes import evaluating

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


def pgd_accuracies(
    model: nn.Module,
    split: Split,
    radii: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    steps: int = 20,
    restarts: int = 1,
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
        steps, restarts: as in ``pgd``, whose step size is 2.5 radius / steps.
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
    split = labelled(split)
    draws = {r: torch.Generator().manual_seed(mix(seed, zlib.crc32(f"{r}".encode()))) for r in sorted(set(radii))}
    left, clean, hidden = dict.fromkeys(draws, 0), 0, 0
    for batch in in_order(split, device=device, batch_size=batch_size, workers=workers):
        with evaluating(model):
            logits, gradient = input_gradient(model, batch.inputs, batch.targets)
        standing = logits.argmax(1) == batch.targets
        clean += int(standing.sum())
        hidden += int(zero_gradients(gradient).sum())
        images, labels = batch.inputs[standing], batch.targets[standing]
        for radius, generator in draws.items():
            if not len(labels):
                break
            moved = pgd(model, images, labels, radius=radius, steps=steps, restarts=restarts, generator=generator)
            with evaluating(model), torch.no_grad():
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
