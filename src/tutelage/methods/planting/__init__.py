"""A network that grows: channels are planted in one layer after another, and only the new parameters are trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import parameters
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._widths import Resource, cost_of, narrow_equally
from tutelage.methods.planting.parts import find_planting, join, new_parameters, plant, plantable
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


@method(paper="Mitsuno, Nomura, Kurita 2020, arXiv 2011.02390", family="growing networks", evidence="abstract")
def planting(
    run: Run,
    *,
    channels: Count | None = 4,
    planting_epochs: Count | None = 10,
    rounds: Count = 10,
    tries: Count | None = None,
    budget: Count | None = None,
    resource: Resource = "parameters",
    target: Fraction | None = None,
    narrow: Fraction | None = None,
    delta: NonNegative = 0.0,
    patience: Count = 1,
    alpha: Share = 0.9,
    temperature: Positive = 4.0,
    layers: Literal["convolutions", "all"] = "convolutions",
    fine_tune: Annotated[int, Field(ge=0)] | None = 0,
) -> Tapped:
    """Channel planting: grow a small trained network by a few channels at a time, and train only the new parameters.

        L = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v / T) || softmax(z / T))

    z are the student's logits and v the teacher's, (B, C); the mean is over the batch. The student is trained with L
    for the run's epochs. In each round, for each layer, a copy of the network gets p new output channels in that layer:

        W   <- [W; W_new],     W_new  (p, C_in, k, k), normal with variance 2 / (C_in k^2)
        W'  <- [W', W'_new],   W'_new (C_out', p, k, k) = 0, of each layer that reads the channels

    with biases and entries of batch normalisations for the new channels; a layer that reads flattened maps gets p H W
    columns. The function of the network is the same at first. The new parameters alone are trained with L; all others
    and their running statistics remain in every bit. The copy with the smallest cross-entropy on the held-out split is
    the network of the next round. The search ends after ``rounds`` rounds, when no copy is within the budget, or when
    the cross-entropy has not fallen by ``delta`` for ``patience`` rounds; the network of the last fall is the student.

    Args:
        run: the run; it needs a held-out split, on which every selection is made. Each round has one fit per layer.
        channels: p [inferred]; ``None`` for as many in each layer as divide the way to ``target`` into equal rounds.
        planting_epochs: of each of these fits [inferred]; ``None`` for an eighth of the epochs of the run.
        rounds: the largest number of rounds.
        tries: the number of layers that each round tries, drawn at random; ``None`` for all.
        budget: the largest number of parameters; ``None`` for no limit.
        resource: what ``target`` and ``narrow`` mean: "flops" of one input, or "parameters".
        target: the largest cost, as a share of that of the student as it is built; it needs ``narrow``.
        narrow: first remove the same share of the units of each layer, so that this share of the cost remains. Not in
            the paper.
        delta: by how much the cross-entropy must fall, in nats; with 0, not rise [inferred].
        patience: how many rounds in a row it may not, before the search ends [inferred].
        alpha: the weight of the soft targets [inferred]; with 0 no teacher is needed.
        temperature: T [inferred].
        layers: "convolutions" plants channels in convolutions that the next layers read through separate channels and
            that no sum couples with others, such as the first of a residual block, but not its last. "all" plants units
            in linear layers as well, and in all layers at once whose outputs are added [inferred].
        fine_tune: epochs in which all parameters are trained together at the end; ``None`` for those of the run. Not in
            the paper.

    Raises:
        TutelageError: there is no held-out split, no such layer, or the student does not cost less than the limit.

    ``result.json`` records the layer, the parameters, the cross-entropy and the accuracy of each round, and the
    cross-entropy of each copy.

    Evidence: the abstract names the planting of channels, the training of new parameters alone, the search for layers
    and distillation from a teacher. That one layer is chosen in each round is [memory]. Initial values, the criterion,
    the end of the search and all numbers are [inferred].

    Deviations: a schedule and an optimizer state of its own in each fit. The features of frozen layers are computed in
    each step, not cached.
    """
    if run.data.validation is None:
        raise TutelageError("planting needs a held-out split to select the layers to grow; set --validation 0.1")
    held_out = labelled_samples(run.data.validation)
    student, limits = _start(run, budget, resource, target, narrow)
    if target is None and channels is None:
        raise TutelageError("channels=None plants as many channels as reach a target; set target and narrow")
    names = _layers_to_grow(student.module, limits.example(student), layers)
    source = run.frozen(*run.teachers()) if alpha else None

    def train(model: Tapped, **options: Any) -> None:
        new = new_parameters(model.module)
        trainable = new.__contains__ if new else None
        run.fit(Learner(model, source, run.label_terms(alpha, temperature), trainable=trainable), **options)

    def grown(model: Tapped, layer: str, number: int, seed: int) -> Tapped | None:
        """A copy that is trained with new channels in a layer; ``None`` if it would exceed the limits."""
        count = channels or limits.channels(model, layer, number / rounds, coupled=names[layer])
        copied = copy.deepcopy(model)
        places = find_planting(copied.module, layer, count, limits.example(copied), coupled=names[layer])
        if places is None:
            return None
        plant(copied.module, places, torch.Generator().manual_seed(seed))
        if not limits.allow(copied):
            return None
        copied = copied.rewrapped()
        train(copied, epochs=planting_epochs or max(1, round(run.epochs / 8)))
        join(copied.module, places)
        return copied.rewrapped()

    train(student)
    best = last = _Measured.on(held_out, run, student)
    history: list[dict[str, Any]] = [best.summary]
    best_round = 0
    for number in range(1, rounds + 1):
        parent, losses = last, dict[str, float]()
        for index, layer in _tried([*names], tries, mix_seeds(run.seed, 11, number)):
            if (child := grown(parent.model, layer, number, mix_seeds(run.seed, 10, number, index))) is None:
                continue
            measured = _Measured.on(held_out, run, child, layer)
            if not losses or measured.loss < last.loss:
                last = measured
            losses[layer] = measured.loss
        if not losses:
            break
        history.append(last.summary | {"losses": losses})
        if last.loss <= best.loss - delta:
            best, best_round = last, number
        if number - best_round == patience:
            break
    run.note(growth=history, best_round=best_round)
    if fine_tune != 0:
        train(best.model, epochs=fine_tune or run.epochs)
    return best.model


@dataclass(frozen=True)
class _Limits:
    """What the network may cost.

    Attributes:
        budget: the largest number of parameters, or none.
        resource: what ``start`` and ``end`` are costs of.
        start: the cost before the first planting.
        end: the largest cost.
        inputs: of two training samples.
    """

    budget: int | None
    resource: Resource
    start: int
    end: float
    inputs: Tensor

    def example(self, model: Tapped) -> Tensor:
        """What the network reads."""
        return _example(model, self.inputs)

    def cost(self, model: Tapped) -> int:
        return cost_of(self.resource, model.module, self.example(model))

    def allow(self, model: Tapped) -> bool:
        return (self.budget is None or parameters(model) <= self.budget) and self.cost(model) <= self.end

    def channels(self, model: Tapped, layer: str, share: float, *, coupled: bool) -> int:
        """As many new channels of a layer as go this share of the way from the start to the end; at least 1."""
        copied = copy.deepcopy(model)
        places = find_planting(copied.module, layer, 1, self.example(copied), coupled=coupled)
        if places is None:
            return 1
        plant(copied.module, places, torch.Generator())
        cost = self.cost(model)
        missing = self.start + (self.end - self.start) * share - cost
        return max(1, int(missing / (self.cost(copied) - cost)))


@dataclass(frozen=True)
class _Measured:
    """A network, the layer in which it grew last, and its results on the held-out split."""

    model: Tapped
    layer: str | None
    loss: float
    accuracy: float

    @classmethod
    def on(cls, split: Split, run: Run, model: Tapped, layer: str | None = None) -> _Measured:
        logits = run.predict(model, split)
        return cls(model, layer, float(F.cross_entropy(logits, split.labels)), float(accuracy(logits, split.labels)))

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "parameters": parameters(self.model),
            "held_out_loss": self.loss,
            "held_out_accuracy": self.accuracy,
        }


def _start(
    run: Run, budget: int | None, resource: Resource, target: float | None, narrow: float | None
) -> tuple[Tapped, _Limits]:
    """The network that grows, and its limits.

    Raises:
        TutelageError: it does not cost less than the limits, or its layers cannot be narrowed so much.
    """
    if target is not None and (narrow is None or narrow >= target):
        raise TutelageError(f"target={target:g} needs a smaller network to grow from; set narrow, below {target:g}")
    student, inputs = run.student(), _two_inputs(run)
    example = _example(student, inputs)
    end = math.inf if target is None else target * cost_of(resource, student.module, example)
    if narrow is not None:
        narrow_equally(student.module, example, resource, narrow)
        student = student.rewrapped()
    if budget is not None and parameters(student) > budget:
        raise TutelageError(
            f"the student has {parameters(student)} parameters, more than budget={budget}; use a smaller student or a "
            "larger budget"
        )
    return student, _Limits(budget, resource, cost_of(resource, student.module, example), end, inputs)


def _tried(layers: Sequence[str], count: int | None, seed: int) -> list[tuple[int, str]]:
    """The layers that a round tries, with their numbers, in order."""
    if count is None:
        return [*enumerate(layers)]
    chosen = torch.randperm(len(layers), generator=torch.Generator().manual_seed(seed))[:count]
    return [(number, layers[number]) for number in sorted(chosen.tolist())]


def _layers_to_grow(network: nn.Module, example: Tensor, layers: str) -> dict[str, bool]:
    """The names of the layers in which units can be planted, and whether sums couple them with others.

    Raises:
        TutelageError: there is none.
    """
    inner = plantable(network, example)
    if layers == "all":
        names = dict.fromkeys(inner, False) | dict.fromkeys(plantable(network, example, coupled=True), True)
    else:
        names = {name: False for name in inner if isinstance(network.get_submodule(name), nn.Conv2d)}
    if not names:
        kind, remedy = ("layer", "") if layers == "all" else ("convolution", ", or set layers=all")
        raise TutelageError(
            f"{type(network).__name__} has no {kind} where channels can be planted: of two or more channels, which the "
            f"next layers read separately; use another network{remedy}"
        )
    return names


def _two_inputs(run: Run) -> Tensor:
    """Those of two training samples, without augmentation."""
    return next(evaluation_batches(run.data.train.subset(torch.arange(min(2, len(run.data.train)))), workers=0)).inputs


def _example(model: Tapped, inputs: Tensor) -> Tensor:
    """Inputs as a network reads them: normalised, and on its device, which training changes."""
    return model.normalised(inputs.to(model.mean.device))
