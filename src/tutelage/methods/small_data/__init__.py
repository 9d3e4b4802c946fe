"""Training on small data: the factors of a study of capacity, dropout, augmentation and reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from tutelage.data.data import Data, Split
from tutelage.data.loader import mix_seeds
from tutelage.data.orders import FixedSteps, shuffled
from tutelage.data.views import Views
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, method
from tutelage.methods.small_data.reconstruction import Reconstruction
from tutelage.models.attach import attach_before, detach, find_classifier
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Augmentation = Literal["dynamic", "static", "none"]
COPIED_AT_ONCE = 512  # samples


@method(paper="Brigato, Iocchi 2020, arXiv 2003.12843", family="small data", evidence="abstract")
def small_data(
    run: Run,
    *,
    steps: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    augmentation: Augmentation = "dynamic",
    copies: Annotated[int, Field(ge=1)] = 10,
    reconstruct: NonNegative = 0.0,
) -> Tapped:
    """Training on small data: cross-entropy with the factors of a study as switches, for a fixed number of steps.

        L = CE(z, y) + lambda ||dec(enc(x)) - x||^2 / |x|

    enc is the student up to its last stage, dec a small decoder that exists only during training, |x| the number of
    values of an image with pixels in [0, 1]. Capacity, the study's first factor, is the choice of the student: the
    networks ``cnn1``, ``cnn2`` and ``cnn4`` differ in their widths only. ``--per-class`` draws the training samples; a
    larger draw contains the smaller ones of the same seed (use ``--validation 0`` too, since held-out samples are drawn
    anew for each size).

    Args:
        run: the run; a teacher is not used. Its epochs are sections of the training, after which it is evaluated.
        steps: of the optimizer in the whole training, rounded up to a multiple of the epochs, whatever the number of
            samples: equal epochs would give few samples few steps. The study has 5,000 to 10,000 [inferred]. ``None``
            passes over the samples once per epoch.
        dropout: the rate of dropout at the input of the classifier during training. 0 adds no layer.
        augmentation: "dynamic" draws a new view of each sample each time; "static" draws ``copies`` views of each
            sample once and trains on these; "none" uses the samples as they are [inferred].
        copies: views of each sample in static augmentation [inferred].
        reconstruct: lambda, the weight of the unsupervised loss. With 0 there is no decoder.

    With the defaults all switches are off, and the result is bit for bit that of ``plain``.

    Evidence: two abstracts of the paper contradict each other. An early one names an unsupervised loss and says that
    dynamic augmentation does not help; the published one has no such loss and says that standard augmentation helps
    much. Both say that capacity is critical and that dropout helps. Neither claim about augmentation is assumed here:
    see the results page. The numbers of samples and widths are [from memory]; the form of the unsupervised loss, the
    positions of layers and the number of steps are [inferred]. Neither text nor code could be read.

    Deviations: the study's alternative unsupervised loss, the prediction of rotations, is not implemented.
    """
    student, terms = run.student(), {"ce": 1.0 * CrossEntropy()}
    if reconstruct:
        terms["reconstruction"] = reconstruct * reconstruction_of(run, student)
    with dropout_before_classifier(run, student, dropout):
        run.fit(
            Learner(student, None, terms),
            data=augmented(run.data, augmentation, copies, run.seed),
            order=shuffled if steps is None else FixedSteps(-(-steps // run.epochs)),
        )
    return student


def reconstruction_of(run: Run, student: Tapped) -> Reconstruction:
    """The unsupervised loss on the student's last stage.

    Raises:
        TutelageError: the inputs are no images, or the student has no stage.
    """
    if len(run.data.input_shape) != 3:
        raise TutelageError(f"reconstruction is for images, and {run.data.name} has other inputs; set reconstruct=0")
    if not run.trace(student).stages:
        raise TutelageError(
            f"{type(student.module).__name__} has no feature maps to reconstruct images from; it has "
            f'{", ".join(student.taps)}. Name a layer, for example roles={{"stage1": "layer1"}}, or set reconstruct=0'
        )
    channels, height, width = run.data.input_shape
    return Reconstruction(student.stages[-1], (channels, height, width))


@contextmanager
def dropout_before_classifier(run: Run, student: Tapped, rate: float) -> Iterator[None]:
    """A context in which dropout is applied to the input of the student's classifier; with rate 0 nothing changes.

    Raises:
        TutelageError: the student's last layer is not linear.
    """
    if not rate:
        yield
        return
    classifier = find_classifier(student.module, student.normalised(run.example(student)))
    attach_before(student.module, classifier, "dropout", nn.Dropout(rate))
    try:
        yield
    finally:
        detach(student.module, classifier, "dropout")


def augmented(data: Data, augmentation: Augmentation, copies: int, seed: int) -> Data:
    """The data with this augmentation of its training split."""
    if augmentation == "dynamic":
        return data
    train = static_copies(data.train, data.views, copies, seed) if augmentation == "static" else data.train
    return replace(data, train=train, views=data.modality.unaugmented)


def static_copies(split: Split, views: Views, copies: int, seed: int) -> Split:
    """A split with this number of random views of each sample in place of the sample: N samples to N x copies."""
    generator = torch.Generator().manual_seed(mix_seeds(seed, 7))
    indices = torch.arange(len(split)).repeat_interleave(copies)
    view = torch.randint(views.count, (len(indices),), generator=generator)
    chunks = zip(torch.split(indices, COPIED_AT_ONCE), torch.split(view, COPIED_AT_ONCE), strict=True)
    inputs = torch.cat([views(split.inputs[part], numbers, split.index[part]) for part, numbers in chunks])
    repeated = split.subset(indices)
    return replace(repeated, inputs=inputs, labels=split.labels_under(repeated.labels, views, view, repeated.index))
