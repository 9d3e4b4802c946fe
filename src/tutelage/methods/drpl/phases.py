"""The phases of DRPL: relabelling, and semi-supervised training with the labels that look clean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Split
from tutelage.data.loader import Batches, mix_seeds
from tutelage.methods.drpl.labels import AveragedLabels, PseudoLabels
from tutelage.methods.drpl.losses import MeanPrediction, MixUp
from tutelage.methods.drpl.mixture import probability_noisy
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, Term, Weighted
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.entropy import Entropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Start = Literal["warm-up", "random"]

MILESTONES = {1: (75 / 130, 110 / 130), 2: (100 / 175, 150 / 175), 3: (150 / 300, 225 / 300)}
"""By phase, the shares of its epochs after which the learning rate falls to a tenth."""

DETECTION_FITS = 3
"""The fits of the first two phases, with the warm-up."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of ``drpl``."""

    relabelling: float = 130 / 300
    warmup: float = 10 / 300
    detection: float = 175 / 300
    relabel_from: float = 70 / 130
    window: int = 10
    detection_threshold: float = 0.1
    threshold: float = 0.5
    uniform_share: float = 0.2
    prior: float = 0.8
    entropy: float = 0.4
    start: Start = "warm-up"


@dataclass(frozen=True, slots=True)
class Detection:
    """What the first two phases say about the labels of a split.

    Attributes:
        losses: (2, N) float32, the loss of each sample on its given label after phase 1 and after phase 2; NaN without
            a label.
        noisy: (2, N) float64, P(noisy) by the Beta mixture of each row; 1 without a label, 0 for a trusted one.
    """

    losses: Tensor
    noisy: Tensor


def detect(run: Run, split: Split, settings: Settings, number: int = 1) -> Detection:
    """Phases 1 and 2.

    Args:
        run: its data are replaced.
        split: the training split; labels are class numbers, -1 for none.
        settings: of the phases.
        number: of the student of phase 1; that of phase 2 has the next one.
    """
    first = losses_on_labels(run, relabelled(run, split, settings, number), split)
    noisy = noise_probabilities(first, split)
    clean = labelled_set(noisy, split.labels, settings.detection_threshold)
    epochs = rounded(settings.detection * run.epochs)
    model = semi_supervised(run, split, clean, run.student(number + 1), settings, phase=2, epochs=epochs)
    second = losses_on_labels(run, model, split)
    return Detection(torch.stack([first, second]), torch.stack([noisy, noise_probabilities(second, split)]))


def relabelled(run: Run, split: Split, settings: Settings, number: int) -> Tapped:
    """Phase 1: train on labels that become mean predictions; return the network."""
    labels = one_hot(split.labels, run.data.num_classes)
    epochs = rounded(settings.relabelling * run.epochs)
    rule = AveragedLabels(
        split, labels, steps_of(run, split), start=rounded(settings.relabel_from * epochs), window=settings.window
    )
    model = run.student(number)
    terms = {"ce": CrossEntropy(), **regularisers(run, settings)}
    data = replace(run.data, train=replace(split, labels=labels), validation=None)
    run.fit(Learner(model, None, terms), data=data, update=rule, epochs=epochs, **schedule(1))
    return model


def semi_supervised(
    run: Run, split: Split, clean: Tensor, model: Tapped, settings: Settings, *, phase: Literal[2, 3], epochs: int
) -> Tapped:
    """Phase 2 or 3: train with the labels of the clean samples and pseudo-labels of the others; return the network.

    Args:
        run: its validation split, if any, is used in phase 3.
        split: the training split.
        clean: (N,) bool, whose labels are used.
        model: a network with initial weights.
        settings: of the phases.
        phase: the number of the phase.
        epochs: of the second fit, after the warm-up.
    """
    labels = one_hot(split.labels, run.data.num_classes)
    if settings.start == "warm-up":
        data = replace(run.data, train=replace(split, labels=labels).subset(clean.nonzero()[:, 0]), validation=None)
        warmup = rounded(settings.warmup * run.epochs)
        run.fit(mixed_learner(run, model, settings), data=data, epochs=warmup, schedule="constant")
        pseudo = run.predict(model, split).softmax(1)
    else:
        generator = torch.Generator().manual_seed(mix_seeds(run.seed, 8, phase))
        pseudo = one_hot(torch.randint(run.data.num_classes, (len(split),), generator=generator), labels.shape[1])
    labels = labels.where(clean[:, None], pseudo)
    rule = PseudoLabels(
        split,
        labels,
        steps_of(run, split),
        unlabelled=~clean,
        uniform_share=settings.uniform_share,
        seed=mix_seeds(run.seed, 9, phase),
    )
    data = replace(run.data, train=replace(split, labels=labels))
    data = data if phase == 3 else replace(data, validation=None)
    learner = mixed_learner(run, model, settings, recorded=True)
    run.fit(learner, data=data, update=rule, epochs=epochs, **schedule(phase))
    return model


def mixed_learner(run: Run, model: Tapped, settings: Settings, *, recorded: bool = False) -> Learner:
    """A learner on mixed batches; ``recorded`` if the predictions for the unmixed batch are stored."""
    view = MixUp(("logits",) if recorded else ())
    terms = {"ce": CrossEntropy(), **regularisers(run, settings)}
    weighted = {name: term if isinstance(term, Weighted) else Weighted(term) for name, term in terms.items()}
    return Learner(model, None, {name: term.weight * term.term.on(view) for name, term in weighted.items()})


def regularisers(run: Run, settings: Settings) -> dict[str, Term | Weighted]:
    """The terms L_p and L_e with their weights."""
    classes = run.data.num_classes  # by which ``Entropy`` is divided
    return {"prior": settings.prior * MeanPrediction(), "entropy": settings.entropy * classes * Entropy()}


def schedule(phase: int) -> dict[str, Any]:
    """The fields of the recipe that a phase changes, besides its epochs."""
    return {"schedule": "step", "milestones": MILESTONES[phase], "gamma": 0.1}


def steps_of(run: Run, split: Split) -> int:
    """Steps per epoch."""
    return len(Batches(split, batch_size=run.recipe.batch_size, world=run.processes.world))


def losses_on_labels(run: Run, model: Tapped, split: Split) -> Tensor:
    """The cross-entropy of each sample on its given label, in eval mode, (N,) float32; NaN without a label."""
    losses = cross_entropy(run.predict(model, split), split.labels)
    return losses.masked_fill(split.labels == UNLABELLED, float("nan"))


def noise_probabilities(losses: Tensor, split: Split) -> Tensor:
    """P(noisy) of each sample by the mixture of the losses, (N,) float64; 1 without a label, 0 for a trusted one."""
    labelled = split.labels != UNLABELLED
    noisy = torch.ones(len(split), dtype=torch.float64)
    noisy[labelled] = probability_noisy(losses[labelled])
    return noisy if split.trusted is None else noisy.masked_fill(split.trusted, 0.0)


def labelled_set(noisy: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Which labels are used, (N,) bool: those with P(noisy) up to the threshold, and of each class at least one.

    Args:
        noisy: (N,), P(noisy).
        labels: (N,) int64, -1 for none.
        threshold: the largest P(noisy).
    """
    clean = (noisy <= threshold) & (labels != UNLABELLED)
    for label in sorted({*labels.tolist()} - {UNLABELLED}):
        members = (labels == label).nonzero()[:, 0]
        clean[members[noisy[members].argmin()]] = True
    return clean


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N,) int64 to (N, C) float32; 0 for a sample without a label."""
    return F.one_hot(labels + 1, classes + 1)[:, 1:].float()


def rounded(epochs: float) -> int:
    """A whole number of epochs, at least one."""
    return max(1, round(epochs))
