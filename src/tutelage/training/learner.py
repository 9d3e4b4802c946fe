"""A model, who teaches it, and what it is to match."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import Source
from tutelage.terms.term import Term, View, Weighted


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch, and what student and teacher gave for it."""

    batch: Batch
    student: Outputs
    teacher: Outputs | None


class Learner:
    """A student with its source and its terms.

    Its loss is the sum over terms of weight x mean over the batch of sample weight x value. A term with a value per
    sample is averaged here, over all B samples (one without a label counts, with the 0 that label losses give it); one
    that has a single value is taken as it is. A term whose weight is 0 is not computed, nor is a view that only such
    terms want.

    Args:
        model: what learns.
        source: who teaches; ``None`` for label losses alone.
        terms: what is matched, by a name that metrics and errors use. ``0.9 * SoftTargets(4)`` weighs one; a weight may
            be a function of progress in [0, 1].
        trains: which parameters learn, by their names in the model's own ``state_dict``; all of them if ``None``. What
            does not require gradients never learns. Parts of the network of which no weight learns stay in eval mode:
            their weights and their buffers, running statistics among them, do not change.
        sample_weight: a weight per sample, ``(lesson, progress) -> (B,)``, for every term with a value per sample. It
            is asked without gradients, once a step for each batch on which such a term counts. One that is an
            ``nn.Module`` is moved and kept with the learner: its buffers are its state.
        deployed: the network that is judged and kept, where that is not ``model`` itself but a part of it.
        name: what metrics and errors call it.
    """

    def __init__(
        self,
        model: Tapped,
        source: Source | None,
        terms: Mapping[str, Term | Weighted],
        *,
        trains: Callable[[str], bool] | None = None,
        sample_weight: Callable[[Lesson, float], Tensor] | None = None,
        deployed: Tapped | None = None,
        name: str = "student",
    ) -> None:
        if not terms:
            raise ValueError("a learner needs at least one term")
        check_tapped("Learner", model, *([] if deployed is None else [deployed]))
        self.model, self.source, self.name = model, source, name
        self.deployed = model if deployed is None else deployed
        self.terms = {key: term if isinstance(term, Weighted) else Weighted(term) for key, term in terms.items()}
        self.trains, self.sample_weight = trains, sample_weight
        self.modules = nn.ModuleDict({key: weighted.term for key, weighted in self.terms.items()})
        """Its terms, as one module: what they own is trained, moved and kept with the learner."""
        if isinstance(sample_weight, nn.Module):
            self.modules["sample_weight"] = sample_weight
        self._modes: list[tuple[nn.Module, bool]] = []

    def views(self, progress: float | None = None) -> tuple[View, ...]:
        """The views that its terms want; with ``progress``, those of terms that count at this point of the run."""
        return tuple(dict.fromkeys(w.view for w in self._active(progress) if w.view is not None))

    def roles(self, view: View | None = None) -> tuple[str, ...]:
        """What is read of the student on the batch at hand, by terms and by views; or what terms read on a view's."""
        readers: list[Term | View] = [w.term for w in self._active(None) if w.view is view]
        readers += () if view else self.views()
        found = [role for reader in readers for role in reader.roles]
        if view is None:  # where the student's own answer stands for a teacher's
            found += [role for w in self._active(None) if w.between for role in w.term.teacher_roles]
        return tuple(dict.fromkeys(found))

    def reads(self, roles: Collection[str]) -> bool:
        """Whether any of its terms reads one of these roles of the student."""
        return any(role in roles for view in (None, *self.views()) for role in self.roles(view))

    @property
    def reads_labels(self) -> bool:
        """Whether any term that can have a weight needs labels."""
        return any(w.term.reads_labels and not w.is_off for w in self.terms.values())

    def teacher_roles(self, progress: float | None = None, view: View | None = None) -> tuple[str, ...]:
        """The same of the teacher; with ``progress``, by those that count at this point of the run."""
        readers: list[Term | View] = [w.term for w in self._active(progress) if w.view is view and not w.between]
        readers += () if view else self.views(progress)
        return tuple(dict.fromkeys(role for reader in readers for role in reader.teacher_roles))

    def _active(self, progress: float | None) -> list[Weighted]:
        return [w for w in self.terms.values() if progress is None or w.at(progress)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser is given: the parameters that learn, and those of the terms."""
        yield from (
            parameter for name, parameter in self.model.module.named_parameters() if self._learns(name, parameter)
        )
        yield from (p for p in self.modules.parameters() if p.requires_grad)

    def _learns(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.requires_grad and (self.trains is None or self.trains(name))

    def train(self) -> None:
        """Train mode, except for the parts of the network of which no weight learns."""
        if self._modes and all(module.training is mode for module, mode in self._modes):
            return  # asked in each step: to look costs a hundredth of what it costs to set
        self.model.train()
        self.modules.train()
        for module in self._frozen():
            module.training = False
        self._modes = [(module, module.training) for root in (self.model, self.modules) for module in root.modules()]

    def _frozen(self) -> Iterator[nn.Module]:
        """The submodules of which no weight learns.

        One without weights is as the module around it, unless ``trains`` names what learns and it has buffers.
        """
        weights: dict[str, bool] = {}  # whether any learns, by the name of each submodule that has weights
        for name, parameter in self.model.module.named_parameters(remove_duplicate=False):
            learns, around = self._learns(name, parameter), name
            while around:
                around = around.rpartition(".")[0]
                weights[around] = weights.get(around, False) or learns
        for name, module in self.model.module.named_modules():
            around = name
            while around and around not in weights:
                around = around.rpartition(".")[0]
            only_buffers = name not in weights and next(module.buffers(recurse=False), None) is not None
            if not weights.get(around, True) or (only_buffers and self.trains is not None):
                yield module

    def loss(self, lessons: Mapping[View | None, Lesson], progress: float) -> tuple[Tensor, Tensor]:
        """The total (), and each term's unweighted mean (terms,), detached; 0 for a term whose weight is 0.

        Args:
            lessons: the batch at hand under ``None``, and those that the views made.
            progress: how far the run is, in [0, 1).
        """
        weights: dict[View | None, Tensor | None] = {}
        device = lessons[None].batch.inputs.device
        total: Tensor | float = 0.0
        values = []
        for weighted in self.terms.values():
            factor = weighted.at(progress)
            if factor == 0:
                values.append(torch.zeros((), device=device))
                continue
            lesson = lessons[weighted.view]
            teacher = lessons[None].student if weighted.between else lesson.teacher
            value = weighted.term(lesson.student, teacher, lesson.batch)
            if value.ndim:
                if weighted.view not in weights:
                    weights[weighted.view] = self._sample_weights(lesson, progress)
                weight = weights[weighted.view]
                value = (value if weight is None else value * weight.to(value)).mean()
            values.append(value.detach().float())
            total = total + factor * value
        if not isinstance(total, Tensor):
            total = torch.zeros((), device=device, requires_grad=True)
        return total, torch.stack(values)

    @torch.no_grad()
    def _sample_weights(self, lesson: Lesson, progress: float) -> Tensor | None:
        """How much each sample counts: by the batch itself and by the learner's own weighting; ``None`` is 1."""
        batch = lesson.batch
        if self.sample_weight is None:
            return batch.weight
        weight = self.sample_weight(lesson, progress)
        if weight.shape != (len(batch),):
            raise TutelageError(
                f"sample_weight of learner {self.name!r} must give one number a sample, ({len(batch)},); "
                f"it gave shape {tuple(weight.shape)}"
            )
        return weight if batch.weight is None else weight * batch.weight
