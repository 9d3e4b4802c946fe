"""Adversarial training on images of sounds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from tutelage.attacks import FGSM, PGD, AdversarialSamples
from tutelage.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.data.modality import Waveforms
from tutelage.errors import TutelageWarning
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import NonNegative, Share, method
from tutelage.methods.audio_adversarial.fronts.sound_image import Representation, build
from tutelage.methods.audio_adversarial.images import image_data
from tutelage.models.attach import input_layer
from tutelage.models.modes import eval_mode
from tutelage.models.surgery import front
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

MONITORED = 100
"""Samples on which the attacks are compared after each epoch."""

OVERFITTED = 0.3
"""The difference between the accuracies under FGSM and under PGD above which there is a warning [our choice]."""


@method(
    paper="Sallo, Esmaeilpour, Cardinal 2020, arXiv 2008.11618",
    family="adversarial robustness",
    evidence="abstract",
)
def audio_adversarial(
    run: Run,
    *,
    representation: Representation = "scalogram",
    tonal: bool = True,
    size: Annotated[int, Field(ge=8, le=1024)] = 128,
    clean: Share = 0.5,
    radius: NonNegative = 8 / 255,
    steps: Annotated[int, Field(ge=1)] = 1,
) -> Tapped:
    """Adversarial training on images of sounds: cross-entropy on clean and on attacked images.

        L = clean CE(f(X), y) + (1 - clean) CE(f(X + delta), y),   X = image of the sound x in [0, 1]

    delta is from the fast gradient sign method, delta = radius sign(grad_X CE(f(X), y)), or with several steps from
    projected gradient descent with a random start; X + delta stays in [0, 1]. The images are computed once; the student
    then gets the front that makes them before its first layer, so that it takes waveforms, such as those of
    ``wav:FOLDER``. Images as data are taken for such images and used as they are.

    Training on single-step attacks can overfit to them: the network is then robust to FGSM alone. After each epoch
    both attacks are compared on held-out samples, and a difference above 30 points is a warning; the remedy is
    ``steps=7``.

    Args:
        run: the run; a teacher is not used. Any network of images is a student, since it is built for one channel and
            pools over its last map. Images of waveforms are not augmented.
        representation: ``scalogram`` (complex Morlet wavelets, which the group calls DWT), ``stft``, ``mfcc`` or
            ``db4`` (a dyadic wavelet transform).
        tonal: whether twelve rows of chroma and six of tonnetz follow below.
        size: of the images, in pixels.
        clean: the weight of the clean images, a; 1 is plain training.
        radius: the maximum change of each pixel, in [0, 1]; 0 is plain training, too.
        steps: of the attack: 1 for FGSM; more for PGD with steps of 2.5 radius / steps.

    Raises:
        TutelageError: the data are neither waveforms nor images, or the clips are too short.

    ``result.json`` records the accuracies on held-out samples (or on training samples without any) under FGSM and under
    PGD with 10 steps (``fgsm_accuracy``, ``pgd_accuracy``), in the image domain.

    **Threat model.** The paper's attacker changes the image, which then need not be that of any sound. ``images.py``
    has the network behind the front (``image_network``), and one for attacks on the waveform (``WaveformNetwork``).

    Evidence: the abstract and the beginning of the introduction. The mixture with single-step attacks, the
    wavelets, the frames of 50 ms with an overlap of half and the appended chroma and tonnetz are [from memory];
    the weight, the radius, the layout of the blocks, the limits of the decibels and the size are [inferred].

    Deviations: all representations share one grid of frames, so that an instant is in the same column of each; the
    hop of the STFT is therefore 25 ms instead of a quarter of its window. Images are rounded to 256 levels for
    training. AlexNet and GoogLeNet, which the paper also compares, are not built in; neither are pitch shifts and
    cross-validation over the folds of its data.
    """
    student = run.student()
    if not isinstance(run.data.modality, Waveforms):
        _ = run.data.image_shape  # raises for other kinds of data
        return _train(run, student, run.data, clean, radius, steps)
    (mean,), (std,) = run.data.mean_std
    settings: dict[str, Any] = {"representation": representation, "tonal": tonal, "size": size}
    settings |= {"rate": run.data.modality.rate, "mean": mean, "std": std}
    example = run.example(student)
    input_layer(student.module)  # raises early if no front can be attached
    images = image_data(run.data, build(example, **settings, image_mean=0.0, image_std=1.0))
    (image_mean,), (image_std,) = images.mean_std
    _train(run, student.with_normalisation((image_mean,), (image_std,)), images, clean, radius, steps)
    front.apply(student.module, example, kind="sound_image", **settings, image_mean=image_mean, image_std=image_std)
    return student.rewrapped()


def _train(run: Run, model: Tapped, data: Data, clean: float, radius: float, steps: int) -> Tapped:
    """Train a network on images, and record its accuracies under both attacks."""
    attacked = AdversarialSamples(model, radius, _step_size(radius, steps), steps, random_start=steps > 1)
    terms: dict[str, Term | Weighted] = {"clean": clean * CrossEntropy()} if clean else {}
    if clean < 1:
        terms["attacked"] = (1 - clean) * CrossEntropy().on(attacked)
    monitored = _monitored(data)

    def compare(history: Sequence[Record]) -> bool:
        if clean < 1 and steps == 1:
            fgsm, pgd = _accuracies(model, monitored, radius)
            if fgsm > pgd + OVERFITTED:
                warnings.warn(
                    f"after epoch {len(history)} {fgsm:.0%} of {len(monitored)} samples withstand FGSM and {pgd:.0%} "
                    "PGD: the training has overfitted to single steps; use steps=7",
                    TutelageWarning,
                    stacklevel=2,
                )
        return False

    fitted = run.fit(Learner(model, None, terms), data=data, until=compare)
    compare(fitted.history)  # ``until`` is not called after the last epoch
    fgsm, pgd = _accuracies(model, monitored, radius)
    run.note(fgsm_accuracy=fgsm, pgd_accuracy=pgd)
    return model


def _step_size(radius: float, steps: int) -> float:
    return radius if steps == 1 else 2.5 * radius / steps


def _monitored(data: Data) -> Split:
    """Labelled held-out samples, or training samples if none are held out."""
    held_out = labelled_samples(data.train if data.validation is None else data.validation)
    return held_out.subset(torch.arange(min(MONITORED, len(held_out))))


def _accuracies(model: Tapped, split: Split, radius: float) -> tuple[float, float]:
    """The accuracies under FGSM and under PGD with ten steps."""
    batch = next(evaluation_batches(split, batch_size=len(split), device=model.mean.device, workers=0))
    shares = []
    for attack in (FGSM(radius=radius), PGD(radius=radius, steps=10, loss="margin")):
        attacked = attack(model, batch.inputs, batch.targets, torch.Generator().manual_seed(0))
        with eval_mode(model), torch.no_grad():
            shares.append(float((model(attacked).argmax(1) == batch.targets).double().mean()))
    return shares[0], shares[1]
