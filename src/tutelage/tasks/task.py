"""What is asked of a network: the frame that every task fills in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tutelage.config import ExtraEvaluation
from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NETWORK_ERRORS, TutelageError, one_line
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs
from tutelage.models.state import dtype_hint
from tutelage.models.tapped import Tapped
from tutelage.terms.term import Term


@dataclass(frozen=True, slots=True)
class Metric:
    """A single number of an evaluation, of which tables can be made.

    Attributes:
        title: its name in words.
        better: the end that is good; ``None`` where neither is, or where the condition alone decides it.
        percent: whether it lies in [0, 1] and is shown in per cent, its differences in points.
        in_studies: whether the records of a study have it; ``result.json`` has it in any case.
    """

    title: str
    better: Literal["higher", "lower"] | None
    percent: bool = False
    in_studies: bool = True

    @property
    def short_title(self) -> str:
        """The title without the split that it is usually measured on."""
        return self.title.removeprefix("test ")

    def text(self, value: float) -> str:
        """A value of it for a terminal."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Curve:
    """Several numbers of an evaluation that belong together: kept with a run, drawn, and in no table.

    Attributes:
        title: its name in words.
    """

    title: str


@dataclass(frozen=True, slots=True)
class Compute:
    """How networks are evaluated.

    Attributes:
        device: where the network is.
        amp: the type to autocast to; ``None`` computes in the network's own.
        workers: processes that read files.
    """

    device: torch.device | str = "cpu"
    amp: torch.dtype | None = None
    workers: int = 2


class Task:
    """What is asked of a network on some data, which loss trains it by labels, and how its outputs are evaluated.

    A file of this folder has one, named ``task``; packages outside add theirs by the entry point group
    ``tutelage.tasks``. Nothing outside a task asks what kind of network it has.
    """

    roles: ClassVar[tuple[str, ...]] = ("logits",)
    """Which outputs are evaluated. A learner none of whose terms reads one of them is not evaluated while it trains."""

    metrics: ClassVar[Mapping[str, Metric | Curve]]
    """What ``evaluate`` gives. The first is the main metric: selection, tuning and tables go by it."""

    decision_rule: ClassVar[str] = ""
    """The rule by which outputs are read, where it is more than the largest one: in words, for ``tutelage export``."""

    columns: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Short heads of the numbers in the widest table of a study; if empty, it has all ``metrics`` with a better end."""

    loss_name: ClassVar[str] = "labels"
    """What records call the label loss."""

    outputs_are_logits: ClassVar[bool] = False
    """Whether the outputs are logits, whose softmax over the last axis is a distribution over classes."""

    training_metric_note: ClassVar[str] = "The main metric over the training batches, by the labels given."
    """What the numbers of ``tally`` are, as a sentence under their image."""

    @property
    def name(self) -> str:
        """Its name, that of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (type(self).__doc__ or "").strip().split("\n", 1)[0]

    @property
    def main_metric(self) -> str:
        """The name of the main metric."""
        return next(iter(self.metrics))

    @property
    def lower_is_better(self) -> bool:
        """Whether small values of the main metric are the good ones."""
        metric = self.metrics[self.main_metric]
        return isinstance(metric, Metric) and metric.better == "lower"

    def improves(self, score: float, best: float | None) -> bool:
        """Whether a value of the main metric is better than the best one so far."""
        if best is None:
            return True
        return score < best if self.lower_is_better else score > best

    # --- networks and data

    def recognises(self, module: nn.Module) -> bool:
        """Whether a bare network can only be meant for this task."""
        return False

    def check_network(self, model: Tapped) -> None:
        """Refuse a network that cannot do this task, before it is run.

        Raises:
            TutelageError: with what it lacks.
        """

    def wrap(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Tapped:
        """A bare network of this task as a ``Tapped`` student or teacher."""
        return Tapped(module, mean, std)

    def example(self, model: Tapped, data: Data, count: int = 1) -> Tensor:
        """Constant inputs of the network, for counting operations and exporting: (count, ...), where the network is."""
        return data.modality.example(count, data.input_shape, model.mean.device)

    def check_data(self, data: Data) -> None:
        """Refuse data that cannot be evaluated for this task: unless a task says otherwise, that of other targets.

        Raises:
            TutelageError: with the kind of targets.
        """
        if data.targets.task != self.name:
            raise TutelageError(
                f"{data.name} has {data.targets.noun} for labels, whose task is {data.targets.task}, and this is "
                f"{self.name}; choose a method for {data.targets.task}, or other data"
            )

    # --- training

    def label_loss(self) -> Term:
        """The supervised loss: what ``plain`` trains by, and what other methods add to theirs.

        Raises:
            TutelageError: there is no loss of single labels; a method must bring its own.
        """
        raise TutelageError(f"{self.name} has no label loss of its own; choose a method for it: tutelage methods")

    @property
    def has_label_loss(self) -> bool:
        """Whether it defines ``label_loss``."""
        return type(self).label_loss is not Task.label_loss

    def soft_targets(self, temperature: float) -> Term:
        """Hinton's loss between a student's and a teacher's outputs, softened by this temperature.

        Raises:
            TutelageError: the outputs are no distributions.
        """
        raise TutelageError(f"soft targets are for classes, and this is {self.name}; set their weight to 0")

    def check(self, who: str, outputs: Outputs, data: Data) -> None:
        """Refuse outputs that cannot be evaluated on this data; called before the first step.

        Args:
            who: what an error calls the network.
            outputs: what it gave for a few samples, with those of ``roles`` that are read.
            data: the data set.

        Raises:
            TutelageError: with the shape, the one expected, and the remedy.
        """

    def with_evaluated_roles(self, model: Tapped, data: Data) -> Tapped:
        """The network with the roles that are evaluated: itself, unless a task finds them in a way of its own.

        Raises:
            TutelageError: it has none.
        """
        return model

    def incompatibility(self, model: Tapped, data: Data) -> str | None:
        """Why a network's outputs cannot be evaluated on this data, by a pass over two training samples; or ``None``.

        A backbone without a classifier, a network for other classes and one for inputs of another size cannot, and may
        teach by their features all the same.
        """
        few = data.train.subset(torch.arange(min(2, len(data.train))))
        name = type(model.module).__name__
        try:
            batch = next(evaluation_batches(few, device=model.mean.device, workers=0))
            with eval_mode(model), torch.no_grad():
                self.check(name, self.with_evaluated_roles(model, data).tap(batch.inputs, self.roles), data)
        except TutelageError as error:
            return str(error)
        except NETWORK_ERRORS as error:
            remedy = dtype_hint(model) or f"; give it one for such {data.modality.noun}"
            return f"{name} cannot take {data.modality.noun} of shape {data.input_shape}: {one_line(error)}{remedy}"
        return None

    def check_labels(self, data: Data) -> None:
        """Refuse training labels that cannot train a network for this task; called where a term reads labels.

        Raises:
            TutelageError: with what is missing.
        """

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """The main metric over a training batch as (sum, count), (2,), on the device; ``None`` where it is no mean.

        Called in each step: nothing in it may wait for the device.
        """
        return None

    # --- evaluation

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The main metric alone, for selecting epochs and tuning: NaN where no sample has a label."""
        value = self.evaluate(model, split, data, compute)[self.main_metric]
        return math.nan if value is None else float(value)

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """``samples`` and all of ``metrics``, as plain JSON values; ``None`` for a number that does not exist.

        Args:
            model: on the device already.
            split: a split of ``data``.
            data: the data set.
            compute: how.
            teacher: another network, on the same device, to compare with.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evaluate()")

    def evaluate_training_labels(self, model: nn.Module, data: Data, compute: Compute) -> dict[str, Any]:
        """What a trained network made of the training labels, for ``result.json``; empty if there is nothing to say."""
        return {}

    def check_extra(self, what: ExtraEvaluation) -> None:
        """Refuse measurements that this task does not have.

        Raises:
            TutelageError: with its name.
        """
        if what != ExtraEvaluation():
            raise TutelageError(
                f"corruptions, attacks and other data are measured of classifiers, and this is {self.name}"
            )

    def evaluate_extra(
        self,
        model: nn.Module,
        data: Data,
        what: ExtraEvaluation,
        compute: Compute,
        *,
        split: str = "test",
        seed: int = 0,
    ) -> dict[str, Any]:
        """Measurements that are made when they are asked for: corruptions, attacks, other data.

        Raises:
            TutelageError: as ``check_extra``.
        """
        self.check_extra(what)
        return {}

    def describe(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What a terminal shows of a run: titles and values.

        Args:
            metrics: what ``result.json`` holds.
        """
        test = metrics["test"]
        for name, metric in self.metrics.items():
            value = test.get(name)
            if isinstance(metric, Metric) and value is not None:
                yield metric.title, metric.text(value)
        chosen = metrics.get("selected")
        if chosen:
            main = self.metrics[self.main_metric]
            value = chosen[f"test_{self.main_metric}"]
            if isinstance(main, Metric) and value is not None:
                yield f"{main.title}, epoch {chosen['epoch']} (best on held-out)", main.text(value)

    def chance_level(self, data: Data) -> float | None:
        """The main metric of a network that knows nothing, below which a teacher is warned of; ``None`` if unknown."""
        return None

    def ensemble(self, teachers: Sequence[Tapped]) -> nn.Module | None:
        """Several teachers as the one that a student is compared with; ``None`` where several cannot be."""
        return teachers[0] if len(teachers) == 1 else None


def check_single_label(task: str, data: Data) -> None:
    """Refuse data whose samples do not have one class each, for a task that is evaluated by classes.

    Raises:
        TutelageError: with the kind of targets.
    """
    if not data.targets.single_label:
        raise TutelageError(
            f"{task} needs one class for each sample, and {data.name} has {data.targets.noun} for labels, whose task "
            f"is {data.targets.task}; choose a method for {data.targets.task}, or other data"
        )
