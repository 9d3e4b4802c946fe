"""Low-bit quantisation from a few samples: groups of channels, then distillation by blocks and as a whole."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.conditions.condition import stream
from tutelage.data.loader import evaluation_batches
from tutelage.data.split import Split
from tutelage.data.stratified import ranks_in_strata
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.low_bit.stages import BlockInputs, Stages, whole
from tutelage.models.packed import bit_counts
from tutelage.models.quantised import quantised_layers
from tutelage.models.surgery.fold import apply as fold_norms
from tutelage.models.surgery.quantise import apply as quantise
from tutelage.models.tapped import Tapped
from tutelage.training.run import Run

Bits = Annotated[int, Field(ge=2, le=8)]

CALIBRATION = 64  # samples from which the ranges of activations are determined


@method(
    paper="Yuan, Chen, Hu, Peng 2020, doi 10.1109/ICPR48806.2021.9412678", family="quantisation", evidence="abstract"
)
def low_bit(
    run: Run,
    *,
    bits: Bits = 4,
    groups: Annotated[int, Field(ge=1)] = 8,
    edge_bits: Bits = 8,
    activation_bits: Annotated[int, Field(ge=0, le=8)] = 0,
    per_class: Annotated[int, Field(ge=0)] = 10,
    start: Literal["auto", "teacher", "initial"] = "auto",
    fold: bool = True,
    steps: Annotated[int, Field(ge=1)] = 20,
    block_share: Share = 0.4,
    block_inputs: BlockInputs = "float",
    block_rate: Positive = 1e-3,
    joint_rate: Positive = 1e-3,
    scale_factor: Positive = 1.0,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    temperature: Positive = 1.0,
    label_weight: NonNegative = 0.0,
) -> Tapped:
    """Low-bit quantisation: round the teacher's weights to few bits, and repair the error with a few samples.

        Q(w; s_g) = s_g clip(round(w / s_g), -2^(b-1), 2^(b-1) - 1)
        stage 1, for each block k alone:  L_k = ||f_k(x_k) - y_k||^2 / |y_k|
        stage 2, the whole network:  L = (alpha / K) sum_k ||F_k - y_k||^2 / |y_k| + beta T^2 KL(q_T || p_T)

    Each layer's output channels are sorted by their largest weight and divided into groups g, each with a scale s_g: a
    compromise between one scale for the layer and one for each channel. x_k and y_k are the inputs and outputs of the
    float network's blocks for the few samples, computed once; F_k are the outputs of the quantised network, q and p the
    softened predictions of both. Stage 1 has a strong signal for each block; stage 2 repairs the errors that add up
    across blocks. Weights, biases and scales are trained by Adam with a straight-through estimator. No label is used
    unless ``label_weight`` is above 0.

    The blocks are residual blocks, and single layers outside of them. A block whose error does not fall in stage 1,
    such as one of 8 bits that is nearly exact, keeps its first weights [inferred]. At the end the weights are rounded:
    without quantised activations the original network with these weights has the same outputs. ``save_packed`` of
    ``tutelage.models.packed`` writes them as integers.

    Args:
        run: the run; its epochs are divided between the stages. With ``start=initial`` the recipe applies as a whole,
            else only epochs, batch size (at most the number of samples), clipping, mixtures of stage 2 and averages.
        bits: b of the weights.
        groups: G of each layer; 1 is one scale for the layer, a large number one for each channel [inferred].
        edge_bits: b of the first and of the last layer [inferred].
        activation_bits: of the layers' inputs, 2 to 8, with one scale for each layer; 0 for float activations. Their
            ranges are those of the first network, so start from trained weights.
        per_class: training samples of each class; 0 for all samples. If no sample has a label, as many at random.
        start: "teacher" quantises a copy of the teacher, which must be the same network; "initial" quantises the
            student with its initial weights (``--init``), and trains it as a whole with the last two terms of the loss
            under any teacher, which is quantisation-aware distillation; "auto" copies the teacher where it is the same
            network.
        fold: multiply the weights by the factors of the batch normalisations that follow them; otherwise, and for
            those that follow no layer, the running statistics and parameters of the copy stay as they are [inferred].
        steps: the steps of an epoch.
        block_share: the share of the epochs that each block gets in stage 1; the rest is stage 2. 0 leaves out stage
            1, and 1 stage 2; otherwise each has one epoch at least.
        block_inputs: of stage 1: those of the "float" network, or of the "quantised" network with the blocks before
            that are optimised already.
        block_rate, joint_rate: learning rates of the stages; that of stage 1 falls to a tenth at half time, that of
            stage 2 along a cosine [inferred]. For deep networks set a ``joint_rate`` of 0.0001: 0.001 destroyed a
            ResNet-56.
        scale_factor: the learning rate of scales by that of weights.
        alpha, beta, temperature: see the loss [inferred].
        label_weight: of the cross-entropy with labels in stage 2; the paper's stage 2 has features and outputs.

    ``notes`` in ``result.json``: where it started, the number of samples, each block's error before and after stage 1
    relative to the mean square of y_k (``block_errors``), and the bits of the network (``bits``).

    Evidence: the abstract (groups of output channels with a scale each; optimisation of each part alone, then of all
    parts, under the float network's features). All formulas and numbers are [inferred] or usual elsewhere: the scales
    minimise the squared error over 100 clips, their gradients are those of LSQ (Esser et al. 2020).

    Deviations: stage 1 has no augmentation, since its inputs are computed once. Dropout stays active in training.
    Layers other than plain ``nn.Conv2d`` and ``nn.Linear`` stay float, and so do sums of residual branches.
    """
    student = run.student()
    few = few_samples(run, per_class)
    copied = start != "initial" and start_from_teacher(run, student, run.teacher())
    if start == "teacher" and not copied:
        raise another_network(student, run.teacher(), "initial")
    if copied and not run.example(student).is_floating_point():
        raise TutelageError(
            f"start=teacher divides the network into blocks by gradients, and {run.data.name} has "
            f"{run.data.modality.noun}, which have none; use start=initial"
        )
    if copied and fold:
        fold_norms(student.module, run.example(student))
        student = student.rewrapped()
    reference = copy.deepcopy(student)
    example = calibration_batch(run, student, few)
    quantise(student.module, example, bits=bits, groups=groups, edge_bits=edge_bits, activation_bits=activation_bits)
    student = student.rewrapped()
    run.note(start="teacher" if copied else "initial", samples=len(few))
    weights = {"beta": beta, "temperature": temperature, "label_weight": label_weight}
    if not copied:
        source = run.frozen(*run.teachers())
        learner = whole(student, source, {}, frozen_norms=False, scale_factor=scale_factor, **weights)
        run.fit(learner, data=replace(run.data, train=few))
    else:
        stages = Stages(run, few, student, reference, steps=steps, scale_factor=scale_factor)
        block_epochs, joint_epochs = stage_epochs(run.epochs, block_share)
        if block_epochs:
            stages.fit_blocks(block_epochs, block_rate, block_inputs)
        if joint_epochs:
            student = stages.fit_whole(joint_epochs, joint_rate, alpha=alpha, **weights)
    for layer in quantised_layers(student.module).values():
        layer.round_weights()
    run.note(bits=bit_counts(student.module))
    return student


def few_samples(run: Run, per_class: int) -> Split:
    """The few training samples: ``per_class`` of each class, or as many as there are; all for 0.

    They depend on the run's seed alone. If no sample has a label, ``per_class`` times the number of classes are drawn.
    """
    train = run.data.train
    if not per_class:
        return train
    classes = train.targets.strata(train.labels).cpu().numpy()
    most = per_class if (classes >= 0).any() else per_class * run.data.num_classes
    ranks = ranks_in_strata(classes, stream("low_bit", run.seed))
    chosen = ranks < most if (classes < 0).all() else (ranks < most) & (classes >= 0)
    return train.subset(torch.from_numpy(chosen.nonzero()[0]))


def calibration_batch(run: Run, model: Tapped, split: Split) -> Tensor:
    """Inputs of the network, (B, ...), without augmentation: up to 64 samples of a split."""
    part = split.subset(torch.linspace(0, len(split) - 1, min(CALIBRATION, len(split))).round().long())
    batch = next(evaluation_batches(part, workers=0))
    return model.normalised(batch.inputs.to(model.mean.device))


def stage_epochs(epochs: int, share: float) -> tuple[int, int]:
    """The epochs of each block and of the whole network; at least one each, unless the share is 0 or 1."""
    first = 0 if share == 0 else min(max(round(share * epochs), 1), max(epochs - (share < 1), 1))
    return first, 0 if share == 1 else max(epochs - first, 1)
