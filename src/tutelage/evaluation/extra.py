"""Extra evaluation beside accuracy on clean images: corruptions, attacks, out-of-distribution detection."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.attacks.lookup import find_attacks
from tutelage.config import ExtraEvaluation
from tutelage.data.data import Data
from tutelage.errors import unknown
from tutelage.evaluation.attacked import ATTACK_RESULTS, evaluate_attacks
from tutelage.evaluation.corruptions import corruption_accuracies
from tutelage.evaluation.ood import ood_auroc
from tutelage.evaluation.predict import class_logits, labelled_samples
from tutelage.evaluation.robustness import pgd_accuracies


@default_settings()
def evaluate_extra(
    model: nn.Module,
    data: Data,
    what: ExtraEvaluation,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Run the measurements that ``what`` selects, and return JSON values, ``None`` for each measurement not selected.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it must be on ``device`` already.
        data: the data set.
        what: what to measure.
        device: where to compute.
        seed: seed of the noise of corruptions and of the random starts of attacks.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        ``corruptions`` (name to the accuracies at severities 1 to 5), ``corruption_accuracy`` (the mean of them all),
        ``pgd`` (radius, as text, to accuracy), ``auac`` (the area under that curve, from radius 0 to the largest),
        ``zero_gradient_share`` (of the attacked samples; see ``Robustness``), ``ood_auroc``, and the five values of
        ``AttackReport.as_json``.

    Raises:
        TutelageError: there is no such split, it has no labels, the network has another number of classes than the
            data, or the other data set cannot be opened.
    """
    if split not in data.splits:
        raise unknown("split", split, data.splits)
    samples = data.splits[split]
    class_logits(model, "network", data, samples.subset(torch.arange(1)), device)  # checks the number of classes
    result: dict[str, Any] = dict.fromkeys(
        ("corruptions", "corruption_accuracy", "pgd", "auac", "zero_gradient_share", "ood_auroc", *ATTACK_RESULTS)
    )
    attacks = find_attacks(what.attacks)  # before the slow measurements, as the other data set
    if what.ood is not None:  # first: a data set that cannot be opened fails before the slow measurements
        result["ood_auroc"] = ood_auroc(model, data, what.ood, split=split, device=device)
    if what.corruptions or what.pgd or attacks:
        samples = labelled_samples(samples)
        if what.samples is not None and what.samples < len(samples):
            # Evenly spaced over the split: the first images of a folder all have one class.
            samples = samples.subset(torch.arange(what.samples) * len(samples) // what.samples)
    if what.corruptions:
        accuracies = corruption_accuracies(model, samples, device=device, seed=seed)
        shares = [share for per_severity in accuracies.values() for share in per_severity]
        result |= {"corruptions": accuracies, "corruption_accuracy": sum(shares) / len(shares)}
    if what.pgd:
        robust = pgd_accuracies(model, samples, what.pgd, device=device, seed=seed)
        result["pgd"] = {str(radius): share for radius, share in robust.accuracies.items()}
        result |= {"auac": robust.auac, "zero_gradient_share": robust.zero_gradient_share}
    if attacks:
        result |= evaluate_attacks(model, samples, attacks, device=device, seed=seed).as_json()
    return result
