"""Few-shot classification of frozen features, interpolated over a graph of each episode's samples."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.data import Data
from tutelage.data.loader import mix
from tutelage.errors import TutelageError
from tutelage.evaluation.embeddings import ROLE, embedder
from tutelage.methods import Positive, Share, method
from tutelage.methods.graph_fewshot.heads import BaseClasses, Rotation
from tutelage.methods.graph_fewshot.views import MixedFeatures, Rotated
from tutelage.models.surgery.headless import apply
from tutelage.models.tapped import Tapped
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

FEWEST = 2  # classes on either side, where some of the base classes are held out

QUARTER = 1 / 4
"""The share of a batch that is rotated beside the mix-up, so that it becomes as many images as the batch has."""


@method(
    paper="Hu, Gripon, Pateux 2020, arXiv 2001.09849",
    family="few-shot",
    task="few_shot",
    evidence="code",
)
def graph_fewshot(
    run: Run,
    *,
    rotation: Literal["both", "first", "never"] = "both",
    mix_share: Share = 0.5,
    mix_alpha: Positive = 2.0,
    validation_classes: Share = 0.0,
) -> Tapped:
    """Graph interpolation for few-shot classification: a backbone of base classes, and no training in the episodes.

    The backbone is trained as in S2M2_R, in two stages. First on batches in which every image has all four rotations:
    L = CE(class) / 2 + CE(rotation) / 2. Then, with the weights of the first stage, by manifold mix-up:
    L = lambda CE(y_i) + (1 - lambda) CE(y_j) with the features of a random layer mixed as lambda h_i +
    (1 - lambda) h_j, lambda ~ Beta(mix_alpha, mix_alpha); and in the same step the loss of the first stage on a quarter
    of the batch in four rotations. Both heads are linear, on the embedding, and are not kept: the student that is given
    back is the backbone, whose classifier is removed.
    The task evaluates its features on episodes of classes that need not have been trained on: the samples of an episode
    are joined in a graph of nearest neighbours, all features are smoothed by E = (I / 2 + D^(-1/2) S D^(-1/2))^3, and
    logistic regression is fitted to the labelled ones. ``tutelage evaluate RUN`` has the accuracies with and without
    the graph, for all queries together and for one at a time.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        rotation: in which stages rotations are learnt: "both"; "first", as the code has it for CIFAR-FS; "never": the
            first stage then is plain classification.
        mix_share: the share of the epochs that the second stage has [official code: up to 400 epochs each]; 0 leaves it
            out, 1 the first.
        mix_alpha: of the Beta distribution [official code: 2].
        validation_classes: the share of the base classes that is not trained on and by whose episodes the epoch is
            selected (the paper tunes on validation classes [from memory]). With 0 that is the held-out part, as the
            data set or the recipe has it.

    Deviations: the authors train WRN-28-10 or ResNet-18 by Adam at 1e-3 in batches of 16; here network and recipe say
    it (``--optimizer Adam --lr 0.001 --batch-size 16``). That the input and the outputs of all stages are the layers
    that are mixed, and that heads are linear with a bias, is [from memory]. Training samples without a label take part
    in rotations alone. Networks whose embedding is named by hand, or that have no classifier, stay as they are.
    With several processes each mixes its own share of the batch.
    """
    data = _held_out(run.data, validation_classes, run.seed)
    base = _classes(data)
    if len(base) < FEWEST:
        raise TutelageError(
            f"graph_fewshot classifies the classes that are trained on, and {data.name} has {len(base)} with labels; "
            f"train on {FEWEST} classes or more"
        )
    if rotation != "never":
        _check_square(data)
    student = run.trace(_backbone(run))
    classes, turns = BaseClasses(base, data.num_classes), Rotation()
    mixed = MixedFeatures(student, mix_alpha, data.num_classes)

    def rotated(share: float) -> dict[str, Term | Weighted]:
        view = Rotated(share)
        return {"rotated_ce": 0.5 * classes.on(view), "rotation": 0.5 * turns.on(view)}

    first = rotated(1.0) if rotation != "never" else {"ce": classes}
    second = {"mixed_ce": classes.on(mixed)} | (rotated(QUARTER) if rotation == "both" else {})
    second_epochs = round(mix_share * run.epochs)
    stages = [
        (Learner(student, None, terms), epochs, mixing)
        for terms, epochs, mixing in ((first, run.epochs - second_epochs, False), (second, second_epochs, True))
        if epochs
    ]
    for learner, epochs, mixing in stages:
        with mixed.hooked() if mixing else nullcontext():
            run.fit(learner, data=data, epochs=epochs)
    return student


def _classes(data: Data) -> torch.Tensor:
    """(K,) int64, the classes of the training part, sorted."""
    labels = hard_labels(data.train.labels).cpu()
    found: torch.Tensor = torch.unique(labels[labels != UNLABELLED])
    return found


def _held_out(data: Data, share: float, seed: int) -> Data:
    """The data with a share of the training part's classes, drawn by the seed, as the validation part.

    Raises:
        TutelageError: fewer than two classes would be left, or held out.
    """
    if not share:
        return data
    base = _classes(data)
    count = round(share * len(base))
    if not FEWEST <= count <= len(base) - FEWEST:
        raise TutelageError(
            f"validation_classes={share:g} of {len(base)} classes of {data.name} are {count}; episodes and training "
            f"need {FEWEST} classes each: take another share, or 0"
        )
    order = torch.randperm(len(base), generator=torch.Generator().manual_seed(mix(seed, 4)))
    held = torch.isin(hard_labels(data.train.labels).cpu(), base[order[:count]])
    train, validation = (data.train.subset(places.nonzero().squeeze(1)) for places in (~held, held))
    return replace(data, train=train, validation=validation)


def _check_square(data: Data) -> None:
    shape = data.input_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise TutelageError(
            f"rotations need square images, and {data.name} has {data.modality.noun} of shape {shape}; "
            "set rotation=never"
        )


def _backbone(run: Run) -> Tapped:
    """The student without its classifier, if it has one."""
    student = run.student()
    model = embedder(student, run.data)
    if ROLE in model.manual_roles:  # the whole output, or a layer named by hand
        return model
    roles = {role: str(tap) for role, tap in run.trace(model).taps.items() if role != ROLE}
    apply(model.module, model.normalised(run.example(model)))
    return model.rewrapped().with_roles(roles)
