"""Adversarial robustness: accuracy under PGD attacks of several radii."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.attacks.algorithms.pgd import PGD
from tutelage.attacks.criteria import Loss
from tutelage.attacks.gradients import input_gradient, zero_gradients
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.attacked import warn_of_single_draws
from tutelage.evaluation.predict import labelled_samples
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import seeded

ALARMING = 0.05  # share of zero gradients above which a warning is issued [our choice]


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracy under an attack of several radii.

    Attributes:
        clean: the accuracy without an attack, in [0, 1].
        accuracies: radius to accuracy under attack, by increasing radius; it never increases.
        zero_gradient_share: the share of the samples whose input gradient is exactly 0 before the attack. If it is
            positive, the accuracies may be overestimated.
    """

    clean: float
    accuracies: Mapping[float, float]
    zero_gradient_share: float

    @property
    def auac(self) -> float:
        """Return ``auac`` of the accuracies, with the clean accuracy at radius 0."""
        return auac({0.0: self.clean, **self.accuracies})


def auac(accuracies: Mapping[float, float]) -> float:
    """Return the area under the curve of accuracy over perturbation size (Bouniot et al. 2020, arXiv 2102.03156).

    AUAC = 1/e_max times the integral of the accuracy from 0 to e_max, the largest radius, by the trapezoidal rule.
    The ranking of two defences can depend on the radius; this area covers all radii up to e_max, on which it depends.

    Args:
        accuracies: radius to accuracy, in any order, with the clean accuracy at radius 0. The accuracy at a radius is
            that under perturbations up to this radius, so that it never increases.

    Returns:
        The area divided by e_max, in the unit of the accuracies.

    Raises:
        TutelageError: radius 0 is missing or the only radius, a radius is negative, or the accuracy increases.
    """
    curve = sorted(accuracies.items())
    radii = [radius for radius, _ in curve]
    if len(curve) < 2 or radii[0] != 0:
        raise TutelageError(f"the curve needs the accuracy at radius 0 and at a positive radius; its radii are {radii}")
    for (radius, before), (larger, after) in pairwise(curve):
        if not after <= before:
            raise TutelageError(
                f"the accuracy must not increase with the radius: it is {before} at {radius} and {after} at {larger}; "
                "count a sample misclassified at a radius as misclassified at every larger one"
            )
    return sum((outer - inner) * (a + b) / 2 for (inner, a), (outer, b) in pairwise(curve)) / radii[-1]


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
    """Measure the accuracy on a split under ``attacks.PGD`` of each radius.

    Threat model: untargeted white-box attack, with knowledge of the normalisation, that changes every pixel value by at
    most the radius within [0, 1]. A sample misclassified at a radius counts as misclassified at every larger radius,
    which allows the same perturbation. The result is an upper bound on the accuracy under the worst perturbation. To
    claim a defence, use 50 to 100 steps, at least 5 restarts, and other attacks as well.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it is on ``device`` already.
        split: the split; samples without a label are excluded.
        radii: in units of the pixel range [0, 1], in any order.
        device: where to compute.
        steps, restarts, loss: as in ``PGD``, whose step size is 2.5 radius / steps.
        seed: seed of the random starts, which do not depend on the batch size.
        batch_size: images per batch; affects only speed and memory.
        workers: number of processes that read files.

    Warns:
        TutelageWarning: a large share of the samples has an input gradient of exactly 0, or the network is random.

    Raises:
        NonFiniteError: a logit or a gradient is NaN or infinite.
        TutelageError: no sample has a label, or a setting is invalid.
    """
    split = labelled_samples(split)
    generators = {
        r: torch.Generator().manual_seed(mix_seeds(seed, zlib.crc32(f"{r}".encode()))) for r in sorted(set(radii))
    }
    robust, clean, zero = dict.fromkeys(generators, 0), 0, 0
    with seeded(seed):  # for random networks
        for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
            if not clean:
                warn_of_single_draws(model, batch.inputs, {"--pgd": PGD(radius=0.0)})
            with eval_mode(model):
                logits, gradient = input_gradient(model, batch.inputs, batch.targets, loss)
            correct = logits.argmax(1) == batch.targets
            clean += int(correct.sum())
            zero += int(zero_gradients(gradient).sum())
            images, labels = batch.inputs[correct], batch.targets[correct]
            for radius, generator in generators.items():
                if not len(labels):
                    break
                attack = PGD(radius=radius, steps=steps, restarts=restarts, loss=loss or "ce")
                adversarial = attack(model, images, labels, generator)
                with eval_mode(model), torch.no_grad():
                    correct = model(adversarial).argmax(1) == labels
                images, labels = images[correct], labels[correct]
                robust[radius] += len(labels)
    share = zero / len(split)
    if share > ALARMING:
        warnings.warn(
            f"{share:.0%} of the {len(split)} attacked samples have an input gradient of exactly 0: the network masks "
            "its gradient or its softmax is saturated, and its accuracy under attack is overestimated",
            TutelageWarning,
            stacklevel=2,
        )
    return Robustness(clean / len(split), {radius: count / len(split) for radius, count in robust.items()}, share)
