"""The base class of tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.config import ExtraEvaluation
from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Predicting
from tutelage.terms.term import Term


@dataclass(frozen=True, slots=True)
class Compute:
    """How networks are evaluated.

    Attributes:
        device: the device of the network.
        amp: the autocast dtype; ``None`` uses the network's own dtype.
        workers: processes that read files.
    """

    device: torch.device | str = "cpu"
    amp: torch.dtype | None = None
    workers: int = 2


class Task(Predicting):
    """The metrics, the supervised loss, the checks and the evaluation of a kind of problem.

    Each file of this folder defines one, named ``task``; other packages add tasks through the entry point group
    ``tutelage.tasks``. No code outside a task depends on the kind of network.
    """

    roles: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs that are evaluated. A learner whose terms read none of them is not evaluated during training."""

    metrics: ClassVar[Mapping[str, Metric | Curve]]
    """The results of ``evaluate``. The first is the main metric, used for selection, tuning and tables."""

    decision_rule: ClassVar[str] = ""
    """The decision rule in words, for ``tutelage export``, if predictions are not simply the largest output."""

    columns: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Short column titles of a study's widest table; if empty, it has all ``metrics`` with a better direction."""

    counted: ClassVar[str] = "samples"
    """What the counts of its evaluation count, in words."""

    class_metrics: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The metrics of each class on the page of a run: titles of results of ``evaluate``; the first orders them."""

    class_note: ClassVar[str] = ""
    """What ``class_metrics`` are, in words."""

    loss_name: ClassVar[str] = "labels"
    """The name of the label loss in records."""

    outputs_are_logits: ClassVar[bool] = False
    """Whether the outputs are logits, whose softmax over the last axis is a distribution over classes."""

    training_metric_note: ClassVar[str] = "The main metric over the training batches, with the given labels."
    """A sentence about ``training_metric``, printed below its figure."""

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
        """Whether smaller values of the main metric are better."""
        metric = self.metrics[self.main_metric]
        return isinstance(metric, Metric) and metric.better == "lower"

    def improves(self, score: float, best: float | None) -> bool:
        """Whether a value of the main metric is better than the best one so far."""
        if best is None:
            return True
        return score < best if self.lower_is_better else score > best

    # --- networks and data

    def recognises(self, module: nn.Module) -> bool:
        """Whether a bare network can be meant for this task only."""
        return False

    def check_network(self, model: Tapped) -> None:
        """Refuse a network that cannot do this task, before it is run.

        Raises:
            TutelageError: with what the network lacks.
        """

    def wrap(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Tapped:
        """A bare network of this task as a ``Tapped`` student or teacher."""
        return Tapped(module, mean, std)

    def example(self, model: Tapped, data: Data, count: int = 1) -> Tensor:
        """Constant inputs (count, ...) on the network's device, for counting operations and exporting."""
        return data.modality.example(count, data.input_shape, model.mean.device)

    def samples(self, model: Tapped, data: Data, split: Split, count: int = 128) -> Tensor:
        """Real inputs of a network on its device, for measuring cost: at most ``count`` of a split, evenly spaced."""
        rows = torch.arange(min(count, len(split))) * len(split) // min(count, len(split))
        batches = evaluation_batches(split.subset(rows), device=model.mean.device, batch_size=count, workers=0)
        return next(batches).inputs

    def check_data(self, data: Data) -> None:
        """Refuse data that cannot be evaluated for this task; by default, data with other targets.

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
        """The supervised loss: all of the loss of ``plain``, and a part of the loss of other methods.

        Raises:
            TutelageError: the task has no label loss; a method must define its own.
        """
        raise TutelageError(f"{self.name} has no label loss; choose a method for this task, see tutelage methods")

    @property
    def has_label_loss(self) -> bool:
        """Whether it defines ``label_loss``."""
        return type(self).label_loss is not Task.label_loss

    def soft_targets(self, temperature: float) -> Term:
        """Hinton's loss between the student's and the teacher's outputs, softened by a temperature.

        Raises:
            TutelageError: the outputs are not logits.
        """
        raise TutelageError(
            f"soft targets need logits of classes, and the task is {self.name}; set their weight to 0, or choose a "
            "method without them"
        )

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Refuse outputs that cannot be evaluated on the data; called before the first step.

        Args:
            name: the name of the network in error messages.
            outputs: its outputs for a few samples, with those of ``roles`` that are read.
            data: the data set.

        Raises:
            TutelageError: with the shape, the one expected, and the remedy.
        """

    def with_evaluated_roles(self, model: Tapped, data: Data) -> Tapped:
        """The network with the roles that are evaluated; by default the network itself.

        Raises:
            TutelageError: the network has no such role.
        """
        return model

    def check_labels(self, data: Data) -> None:
        """Refuse training labels that cannot train a network for this task; called if a term reads labels.

        Raises:
            TutelageError: with what is missing.
        """

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """The main metric over a training batch as (sum, count), (2,), on the device; ``None`` if it is not a mean.

        Called at each step: it must not synchronise with the device.
        """
        return None

    # --- evaluation

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The main metric alone, for selection and tuning; NaN if no sample has a label."""
        value = self.evaluate(model, split, data, compute)[self.main_metric]
        return math.nan if value is None else float(value)

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """``samples`` and all of ``metrics``, as plain JSON values; ``None`` for an undefined number.

        Args:
            model: on the device already.
            split: a split of ``data``.
            data: the data set.
            compute: how to compute.
            teacher: another network, on the same device, to compare with.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evaluate()")

    def evaluate_training_labels(self, model: nn.Module, data: Data, compute: Compute) -> dict[str, Any]:
        """Results on the training labels, such as memorisation, for ``result.json``; empty if the task has none."""
        return {}

    def check_extra(self, what: ExtraEvaluation) -> None:
        """Refuse extra evaluations that this task does not support.

        Raises:
            TutelageError: with its name.
        """
        if what != ExtraEvaluation():
            raise TutelageError(
                f"corruptions, attacks and out-of-distribution data are for classification, and this is {self.name}"
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
        """Optional extra evaluations: corruptions, attacks, out-of-distribution data.

        Raises:
            TutelageError: as ``check_extra``.
        """
        self.check_extra(what)
        return {}

    def describe(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Titles and values that the terminal prints for a run.

        Args:
            metrics: the content of ``result.json``.
        """
        test = metrics["test"]
        for name, metric in self.metrics.items():
            value = test.get(name)
            if isinstance(metric, Metric) and value is not None:
                yield metric.title, metric.text(value)
        selected = metrics.get("selected")
        if selected:
            main = self.metrics[self.main_metric]
            value = selected[f"test_{self.main_metric}"]
            if isinstance(main, Metric) and value is not None:
                yield f"{main.title}, epoch {selected['epoch']} (best on held-out)", main.text(value)

    def drawings(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> Sequence[Drawing]:
        """Samples of a split with their labels and the predictions drawn in, worst first, for the page of a run.

        Args:
            model: on the device already.
            split: a split of ``data``.
            data: the data set.
            compute: how to compute.
        """
        return ()

    @property
    def has_drawings(self) -> bool:
        """Whether it defines ``drawings``."""
        return type(self).drawings is not Task.drawings

    def chance_level(self, data: Data) -> float | None:
        """The main metric at chance, with a margin; below it a teacher causes a warning. ``None`` if unknown."""
        return None

    def ensemble(self, teachers: Sequence[Tapped]) -> nn.Module | None:
        """The network that a student of several teachers is compared with; ``None`` if they cannot be combined."""
        return teachers[0] if len(teachers) == 1 else None


def check_single_label(task: str, data: Data) -> None:
    """Refuse data whose samples do not have one class each.

    Raises:
        TutelageError: with the kind of targets.
    """
    if not data.targets.single_label:
        raise TutelageError(
            f"{task} needs one class for each sample, and {data.name} has {data.targets.noun} for labels, whose task "
            f"is {data.targets.task}; choose a method for {data.targets.task}, or other data"
        )
