"""Robust learning with different label noise distributions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.drpl.phases import Detection, Settings, Start, detect, labelled_set, semi_supervised
from tutelage.models.tapped import Tapped
from tutelage.training.run import Run

__all__ = ["Detection", "Settings", "detect", "drpl"]


@method(
    paper="Ortego, Arazo, Albert, O'Connor, McGuinness 2020, arXiv 1912.08741", family="noisy labels", evidence="code"
)
def drpl(
    run: Run,
    *,
    relabelling: Positive = 130 / 300,
    warmup: Positive = 10 / 300,
    detection: Positive = 175 / 300,
    relabel_from: Share = 70 / 130,
    window: Annotated[int, Field(ge=1)] = 10,
    detection_threshold: Share = 0.1,
    threshold: Share = 0.5,
    uniform_share: Share = 0.2,
    prior: NonNegative = 0.8,
    entropy: NonNegative = 0.4,
    start: Start = "warm-up",
) -> Tapped:
    """DRPL (label noise): relabel all samples to detect wrong labels, then train semi-supervised without these labels.

    A small loss shows correct labels where noise is symmetric, less so where classes are mistaken for certain others.
    DRPL detects wrong labels by their loss in two other trainings, and trains the student in a third. All minimise

        data term + prior L_p + entropy L_e,   L_p = -1/C sum_c log(mean of p_c),   L_e = mean of -sum_c p_c log p_c

    with means over the batch, where L_p keeps predictions from collapsing into few classes and L_e makes them
    confident.

    1. Relabelling. The data term is the cross-entropy with soft labels, initially the given ones. After each epoch from
       ``relabel_from`` on, the label of every sample becomes the mean of its predictions in the last ``window`` epochs,
       as they were made in training. The learning rate stays high until then, so that wrong labels are not memorised.
    2. Detection. The labels with P(noisy) <= ``detection_threshold`` after step 1 are used, all others dropped. A new
       network is first trained on the labelled samples (warm-up), then on all, whose pseudo-labels are initially its
       predictions. After each epoch they become the predictions of this epoch, except for a random
       ``uniform_share`` of them, which become uniform. Both fits train on mixed samples (mix-up, l from Beta(1, 1)).
    3. The student is trained as in step 2, with the labels of P(noisy) <= ``threshold`` after step 2.

    P(noisy) follows from the cross-entropy with the given labels at the end of a step: two Beta distributions are
    fitted to the losses between their 5th and 95th percentile, and P is the posterior of the one of larger losses. It
    is all that a step hands to the next. There are five fits: each step starts from new weights, and only the warm-up
    of steps 2 and 3 is continued.

    The results are saved for each sample: ``noisy`` and ``noisy_phase1``, P(noisy) after steps 2 and 1, and
    ``loss_phase1`` and ``loss_phase2``.

    Args:
        run: the run; a teacher is not used. Its epochs are those of step 3 after the warm-up, 300 in the authors' code.
        relabelling: the epochs of step 1, as a share of the run's.
        warmup: the epochs of each warm-up, as a share of the run's.
        detection: the epochs of step 2 after the warm-up, as a share of the run's.
        relabel_from: the share of the epochs of step 1 after which labels change. 70 of 130 epochs on CIFAR-10; 40 of
            100 on CIFAR-100.
        window: the number of epochs whose predictions are averaged in step 1.
        detection_threshold: the largest P(noisy) of a label used in step 2; 0.05 for ImageNet32.
        threshold: the largest P(noisy) of a label used in step 3.
        uniform_share: the share of the samples without a label that get the uniform one.
        prior: the weight of L_p.
        entropy: the weight of L_e.
        start: "warm-up", or "random": without the warm-up, from random pseudo-labels, as the released script runs.

    The learning rate falls to a tenth twice in each step, at the authors' shares of its epochs, and is constant in the
    warm-up; the recipe's schedule is not used. The authors have a rate of 0.1, batches of 128, momentum 0.9 and weight
    decay 1e-4.

    Evidence: the authors' code. The script means to start from the warm-up's weights and predictions, and sets the flag
    to false in both branches; ``start`` has both. That the predictions which become the first pseudo-labels are
    without augmentation is [inferred].

    Deviations: the authors compute the losses on one augmented view of each image; here it is the image itself. A
    sample that is in no batch of an epoch keeps its earlier predictions. If no label of a class has a small P(noisy),
    the one with the smallest is used. Labels that were verified have P(noisy) = 0, and samples without a label 1.
    """
    split = run.data.train
    if split.labels.ndim == 2:
        raise TutelageError("drpl needs class numbers as labels, and these labels are soft; use their argmax")
    settings = Settings(
        relabelling=relabelling,
        warmup=warmup,
        detection=detection,
        relabel_from=relabel_from,
        window=window,
        detection_threshold=detection_threshold,
        threshold=threshold,
        uniform_share=uniform_share,
        prior=prior,
        entropy=entropy,
        start=start,
    )
    student = run.student()
    result = detect(run, split, settings)
    noisy = result.noisy[1]
    clean = labelled_set(noisy, split.labels, threshold)
    run.note(noise_rate=float(noisy[split.labels >= 0].mean()), labelled=int(clean.sum()))
    run.note_samples(
        noisy=noisy, noisy_phase1=result.noisy[0], loss_phase1=result.losses[0], loss_phase2=result.losses[1]
    )
    semi_supervised(run, split, clean, student, settings, phase=3, epochs=run.epochs)
    return student
