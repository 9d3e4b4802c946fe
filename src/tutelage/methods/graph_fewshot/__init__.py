"""Few-shot classification of frozen features, interpolated over a graph of each episode's samples."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.data import Data
from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError
from tutelage.evaluation.embeddings import ROLE, embedder
from tutelage.methods import Positive, Share, method
from tutelage.methods.graph_fewshot.heads import BaseClasses, Rotation
from tutelage.methods.graph_fewshot.views import MixedFeatures, Rotated
from tutelage.models.surgery import headless
from tutelage.models.tapped import Tapped
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

MIN_CLASSES = 2  # for training, and for held-out classes

ROTATED_SHARE = 1 / 4
"""The share of a batch that the second stage rotates; in four rotations it has as many images as the batch."""


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
    """Few-shot classification by graph interpolation: train a backbone on base classes and classify its features.

    The backbone is trained as in S2M2_R, in two stages. The first uses batches with all four rotations of each image,
    the second adds manifold mix-up, starting from the weights of the first:

        stage 1: L = CE(class) / 2 + CE(rotation) / 2
        stage 2: L = lambda CE(y_i) + (1 - lambda) CE(y_j) + the loss of stage 1 on a quarter of the batch

    where the features h of a random layer are mixed as lambda h_i + (1 - lambda) h_j, lambda ~ Beta(mix_alpha,
    mix_alpha). Both heads are linear layers on the embedding and are discarded: the method returns the backbone without
    its classifier.
    The task evaluates the features on episodes of classes that need not be among the training classes. The samples of
    an episode form a graph of nearest neighbours, all features are smoothed by E = (I / 2 + D^(-1/2) S D^(-1/2))^3, and
    a logistic regression is fitted to the labelled ones; nothing is fine-tuned. ``tutelage evaluate RUN`` reports the
    accuracies with and without the graph, for all queries together and one at a time.

    Args:
        run: the run; a teacher is not used.
        rotation: the stages with rotations: "both"; "first", as in the code for CIFAR-FS; or "never", where the first
            stage is plain classification.
        mix_share: the share of the epochs of the second stage [official code: up to 400 epochs each]; 0 omits it, 1
            omits the first.
        mix_alpha: of the Beta distribution [official code: 2].
        validation_classes: the share of the base classes that are not trained on and whose episodes select the epoch
            (the paper tunes on validation classes [from memory]). With 0 the held-out split of the data or the recipe
            selects it.

    Deviations: the authors train WRN-28-10 or ResNet-18 by Adam at 1e-3 in batches of 16; here network and recipe are
    free (``--optimizer Adam --lr 0.001 --batch-size 16``). That the input and the outputs of all stages are mixed and
    that heads are linear with a bias is [from memory]. Training samples without a label are used for rotations only.
    Networks that have no classifier, or whose embedding is named by hand, do not change. With several processes, each
    mixes its own share of the batch.
    """
    data = _held_out(run.data, validation_classes, run.seed)
    base = _classes(data)
    if len(base) < MIN_CLASSES:
        raise TutelageError(
            f"graph_fewshot needs {MIN_CLASSES} training classes or more, and {data.name} has {len(base)} with labels"
        )
    if rotation != "never":
        _check_square(data)
    student = run.trace(_backbone(run))
    classes, turns = BaseClasses(base, data.num_classes), Rotation()
    mixture = MixedFeatures(student, mix_alpha, data.num_classes)

    def rotated(share: float) -> dict[str, Term | Weighted]:
        view = Rotated(share)
        return {"rotated_ce": 0.5 * classes.on(view), "rotation": 0.5 * turns.on(view)}

    first = rotated(1.0) if rotation != "never" else {"ce": classes}
    second = {"mixed_ce": classes.on(mixture)} | (rotated(ROTATED_SHARE) if rotation == "both" else {})
    second_epochs = round(mix_share * run.epochs)
    stages = [
        (Learner(student, None, terms), epochs, mixing)
        for terms, epochs, mixing in ((first, run.epochs - second_epochs, False), (second, second_epochs, True))
        if epochs
    ]
    for learner, epochs, mixing in stages:
        with mixture.hooked() if mixing else nullcontext():
            run.fit(learner, data=data, epochs=epochs)
    return student


def _classes(data: Data) -> torch.Tensor:
    """The classes of the training split, sorted: (K,) int64."""
    labels = hard_labels(data.train.labels).cpu()
    classes: torch.Tensor = torch.unique(labels[labels != UNLABELLED])
    return classes


def _held_out(data: Data, share: float, seed: int) -> Data:
    """The data with a random share of the training classes, chosen by the seed, as the validation split.

    Raises:
        TutelageError: fewer than two classes would be trained on, or held out.
    """
    if not share:
        return data
    base = _classes(data)
    count = round(share * len(base))
    if not MIN_CLASSES <= count <= len(base) - MIN_CLASSES:
        raise TutelageError(
            f"validation_classes={share:g} of {len(base)} classes of {data.name} are {count}; episodes and training "
            f"need {MIN_CLASSES} classes each: choose another share, or 0"
        )
    order = torch.randperm(len(base), generator=torch.Generator().manual_seed(mix_seeds(seed, 4)))
    is_validation = torch.isin(hard_labels(data.train.labels).cpu(), base[order[:count]])
    train, validation = (data.train.subset(mask.nonzero().squeeze(1)) for mask in (~is_validation, is_validation))
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
    headless.apply(model.module, model.normalised(run.example(model)))
    return model.rewrapped().with_roles(roles)
