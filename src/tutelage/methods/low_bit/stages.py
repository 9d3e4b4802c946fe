"""The two stages of training: each block on its own, on stored inputs and outputs, and the whole network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.data.orders import FixedSteps
from tutelage.data.split import Split
from tutelage.errors import TutelageError
from tutelage.methods.low_bit.features import BLOCK, StoredOutputs, activations_data, block_features, relative_error
from tutelage.models.blocks import blocks
from tutelage.models.quantised import quantised_layers
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen, Source
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run

BlockInputs = Literal["float", "quantised"]


class Stages:
    """The stages of one run.

    Args:
        run: the run.
        few: the samples.
        student: the quantised network.
        reference: the float network; its layers have the same names.
        steps: of an epoch.
        scale_factor: the learning rate of scales by that of weights.

    Raises:
        TutelageError: a block does not take or return one tensor.
    """

    def __init__(
        self, run: Run, few: Split, student: Tapped, reference: Tapped, *, steps: int, scale_factor: float
    ) -> None:
        self.run, self.few, self.student, self.reference = run, few, student, reference
        self.scale_factor = scale_factor
        quantised = quantised_layers(student.module)
        names = blocks(reference.module, run.example(reference))
        self.blocks = [
            name for name in names if any(f"{layer}.".startswith(f"{name}." if name else "") for layer in quantised)
        ]
        world = run.processes.world
        self._options: dict[str, Any] = {
            "order": FixedSteps(steps),
            "batch_size": max(min(run.recipe.batch_size, len(few)) // world, 1) * world,
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "warmup": 0.0,
            "accumulate": 1,
        }

    def fit_blocks(self, epochs: int, rate: float, inputs: BlockInputs) -> None:
        """Stage 1: fit each block to the outputs of the float network, and note its error before and after.

        A block whose error does not fall keeps its first weights, for example one of 8 bits that is nearly exact.

        Args:
            epochs: of each block.
            rate: the learning rate, a tenth of it in the second half.
            inputs: of which network.
        """
        errors = {}
        for name in self.blocks:  # the features of one block at a time, which may need much memory
            block_inputs, outputs = block_features(self.run, self.reference, self.few, [name])[name]
            if inputs == "quantised":
                block_inputs, _ = block_features(self.run, self.student, self.few, [name])[name]
            block = self.student.module.get_submodule(name)
            first_weights = copy.deepcopy(block.state_dict())
            before = relative_error(block, block_inputs, outputs)
            learner = block_learner(block, outputs, self.scale_factor)
            self.run.fit(
                learner,
                data=activations_data(self.run.data, block_inputs),
                epochs=epochs,
                lr=rate,
                schedule="step",
                milestones=(0.5,),
                gamma=0.1,
                label_smoothing=0.0,
                class_weights=None,
                mixup=None,
                cutmix=None,
                **self._options,
            )
            if relative_error(block, block_inputs, outputs) >= before:
                block.load_state_dict(first_weights)
            errors[name] = [before, relative_error(block, block_inputs, outputs)]
        self.run.note(block_errors=errors)

    def fit_whole(self, epochs: int, rate: float, *, alpha: float, **weights: float) -> Tapped:
        """Stage 2: fit the whole network to the float network's features and outputs; returns the student.

        Args:
            epochs: of the fit.
            rate: the learning rate, which falls to 0.
            alpha: the weight of the features, over all blocks together.
            weights: see ``whole``.
        """
        roles = {f"block{number}": name for number, name in enumerate(self.blocks, 1)} if alpha else {}
        student, reference = self.student.with_roles(roles), self.reference.with_roles(roles)
        terms = {role: alpha / len(roles) * feature_error(role) for role in roles}
        learner = whole(student, Frozen(reference), terms, frozen_norms=True, scale_factor=self.scale_factor, **weights)
        data = replace(self.run.data, train=self.few)
        self.run.fit(learner, data=data, epochs=epochs, lr=rate, schedule="cosine", **self._options)
        return student


def feature_error(role: str) -> Term:
    """||F - y||^2 / |y| per sample, (B,)."""
    return Hint(role, role, reduction="mean", use_regressor="never")


def whole(
    student: Tapped,
    source: Source,
    terms: Mapping[str, Term | Weighted],
    *,
    frozen_norms: bool,
    scale_factor: float,
    beta: float,
    temperature: float,
    label_weight: float,
) -> Learner:
    """The learner of the whole network.

    Args:
        student: the quantised network.
        source: the teacher.
        terms: on features.
        frozen_norms: whether batch normalisations stay as they are, in eval mode.
        scale_factor: the learning rate of scales by that of weights.
        beta, temperature: of the soft targets.
        label_weight: of the cross-entropy with labels.

    Raises:
        TutelageError: all weights are 0.
    """
    parts = dict(terms)
    if beta:
        parts["kd"] = beta * SoftTargets(temperature)
    if label_weight:
        parts["ce"] = label_weight * CrossEntropy()
    if not parts:
        raise TutelageError("the loss of the whole network has no term: alpha, beta and label_weight are 0; set one")
    trainable = without_norms(student.module) if frozen_norms else None
    return Learner(student, source, parts, trainable=trainable, options=scale_options(scale_factor))


def block_learner(block: nn.Module, outputs: Tensor, scale_factor: float) -> Learner:
    """The learner of a block, whose teacher is the stored outputs (N, ...)."""
    return Learner(
        Tapped(block, roles={BLOCK: ""}),
        StoredOutputs(outputs),
        {BLOCK: feature_error(BLOCK)},
        trainable=without_norms(block),
        options=scale_options(scale_factor),
        name=BLOCK,
    )


def without_norms(network: nn.Module) -> Callable[[str], bool]:
    """The choice of all parameters but those of batch normalisations, which then stay in eval mode."""
    norms = {
        f"{name}.{parameter}".removeprefix(".")
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return lambda name: name not in norms


def scale_options(factor: float) -> Callable[[str], ParameterOptions | None]:
    """The options of scales: this factor of the learning rate, and no weight decay."""
    chosen = ParameterOptions(lr=factor, weight_decay=0.0)
    return lambda name: chosen if name.rpartition(".")[2] in ("weight_gain", "input_gain") else None
