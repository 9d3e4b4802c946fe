"""What the recipe changes in each training batch: mixtures, smoothed labels, weights of the classes, parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutelage.config import Recipe
from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.loader import Batches
from tutelage.data.mixing import Mixing, soft_labels
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.training.execution import Execution
from tutelage.training.learner import Learner
from tutelage.training.updates import UpdateRule, in_turn, together


@dataclass(frozen=True, slots=True)
class BatchChanges:
    """Changes a training batch as the recipe says; teacher and student get the same changed batch.

    The batch is mixed (``Mixing``), then its labels are smoothed: with C classes and the share e,

        y' = (1 - e) y + e / C    (0 for a sample without a label)

    so that cross-entropy with y' is (1 - e) CE(y) - e / C sum_c log p_c (Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016,
    arXiv 1512.00567). ``Batch.label_weight`` is the weight of the sample's class, for a mixture that of its soft label.

    Attributes:
        classes: C.
        mixing: mixes the samples; ``None`` for unmixed batches.
        smoothing: e, in [0, 1).
        weights: (C,) the weight of each class, on the device; ``None`` for equal weights.
    """

    classes: int
    mixing: Mixing | None = None
    smoothing: float = 0.0
    weights: Tensor | None = None

    @classmethod
    def of(cls, recipe: Recipe, data: Data, execution: Execution, seed: int) -> BatchChanges:
        """The changes of a recipe for a data set.

        Raises:
            TutelageError: the number of class weights is not that of the classes, or all weights are 0.
        """
        mixes = recipe.mixup is not None or recipe.cutmix is not None
        mixing = Mixing(recipe.mixup, recipe.cutmix, seed, execution.processes.rank) if mixes else None
        weights = None if recipe.class_weights is None else class_weights(recipe.class_weights, data)
        return cls(
            data.num_classes,
            mixing,
            recipe.label_smoothing,
            None if weights is None else weights.to(execution.device),
        )

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The batch of a step, counted from 0."""
        if self.mixing is not None:
            batch = self.mixing(replace(batch, targets=soft_labels(batch.targets, self.classes)), number)
        if self.weights is not None:
            batch = replace(batch, label_weight=soft_labels(batch.targets, self.classes) @ self.weights)
        if self.smoothing:
            soft = soft_labels(batch.targets, self.classes)
            uniform = soft.sum(1, keepdim=True) / self.classes
            batch = replace(batch, targets=(1 - self.smoothing) * soft + self.smoothing * uniform)
        return batch


def class_weights(requested: str | Sequence[float], data: Data) -> Tensor:
    """The weight of each class, (C,) float32, whose mean over the labelled training samples is 1.

    Args:
        requested: ``balanced``, for weights inversely proportional to the class's samples, or a number for each class.
        data: the data set.

    Raises:
        TutelageError: there are not as many numbers as classes, or they are 0 for all samples.
    """
    counts = torch.tensor(class_counts(data.train.labels, data.num_classes), dtype=torch.float64)
    if isinstance(requested, str):
        weights = (1 / counts).where(counts > 0, 0.0)
    else:
        weights = torch.tensor(requested, dtype=torch.float64)
        if len(weights) != data.num_classes:
            raise TutelageError(
                f"class_weights has {len(weights)} numbers for the {data.num_classes} classes of {data.name}; give one "
                "for each class, or balanced"
            )
    total = float((weights * counts).sum())
    if total == 0:
        raise TutelageError(
            f"class_weights are 0 for all training samples of {data.name} that have a label; give one class a positive "
            "weight, or leave class_weights out"
        )
    return (weights * counts.sum() / total).float()


def check_changes(recipe: Recipe, learners: Sequence[Learner], update: UpdateRule, data: Data) -> None:
    """Refuse changes of the batches that these learners cannot be trained with.

    Raises:
        TutelageError: with the field of the recipe and the reason.
    """
    if recipe.accumulate > 1 and update is not together:
        raise TutelageError(
            f"accumulate={recipe.accumulate} needs a method that updates all networks once after each batch, and this "
            "one has steps of its own; use accumulate=1 and smaller batches"
        )
    fields = ("mixup", "cutmix", "label_smoothing", "class_weights")
    used = [name for name in fields if getattr(recipe, name)]
    if not used:
        return
    names = " and ".join(used)
    if update not in (together, in_turn):
        raise TutelageError(
            f"{names} cannot be used with this method, whose steps have batches of their own; leave it out"
        )
    readers = [
        (name, weighted.term)
        for learner in learners
        for name, weighted in learner.terms.items()
        if weighted.term.reads_labels and not weighted.is_off
    ]
    if readers and not data.targets.single_label:
        raise TutelageError(
            f"{names} needs one class for each sample, and {data.name} has {data.targets.noun} for labels; leave it out"
        )
    if recipe.label_smoothing and readers and not any(term.uses_soft_labels for _, term in readers):
        name, term = readers[0]
        raise TutelageError(
            f"label_smoothing has no effect on term {name!r} ({type(term).__name__}), which reads the class alone; "
            "leave it out"
        )
    if recipe.mixup is not None or recipe.cutmix is not None:
        _check_mixing(recipe, learners, data)


def _check_mixing(recipe: Recipe, learners: Sequence[Learner], data: Data) -> None:
    names = " and ".join(name for name in ("mixup", "cutmix") if getattr(recipe, name) is not None)
    example = data.modality.example(1, data.input_shape)
    if not example.is_floating_point() or (recipe.cutmix is not None and example.ndim != 4):
        needed = "images" if recipe.cutmix is not None else "inputs that can be averaged"
        raise TutelageError(f"{names} needs {needed}, and {data.name} has {data.modality.noun}; leave it out")
    for learner in learners:
        reason = _reason_against_mixing(learner)
        if reason:
            raise TutelageError(
                f"{names} cannot be used with learner {learner.name!r} of this method: {reason}; leave it out"
            )


def _reason_against_mixing(learner: Learner) -> str:
    """Why a learner cannot be trained on mixtures; empty if it can."""
    if learner.views():
        return f"{type(learner.views()[0]).__name__} makes other samples of unmixed ones"
    if learner.sample_weight is not None:
        return "it weights single samples"
    for name, weighted in learner.terms.items():
        if weighted.is_off:
            continue
        if weighted.term.reads_index:
            return f"term {name!r} keeps a state for each sample"
        if weighted.term.reads_labels and not weighted.term.uses_soft_labels:
            return f"term {name!r} reads one class per sample"
    return ""


def check_parts(batches: Batches, recipe: Recipe) -> None:
    """Refuse to divide batches into parts of different sizes.

    Raises:
        TutelageError: with the number of samples.
    """
    if recipe.accumulate == 1:
        return
    samples = batches.plan(0)[0].shape[1]
    if samples % (batches.world * recipe.accumulate):
        processes = f" in each of {batches.world} processes" if batches.world > 1 else ""
        raise TutelageError(
            f"accumulate={recipe.accumulate} must divide the {samples // batches.world} samples of a batch{processes}; "
            "choose another batch_size or accumulate"
        )
