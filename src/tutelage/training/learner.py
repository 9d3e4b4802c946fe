"""A network that is trained, its teacher, and its loss terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import Source
from tutelage.terms.term import Term, View, Weighted
from tutelage.text import value_text
from tutelage.training.optim import RECIPE_OPTIONS, ParameterOptions


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A batch with the outputs of student and teacher for it."""

    batch: Batch
    student: Outputs
    teacher: Outputs | None


SampleWeight = Callable[[ForwardPass, float], Tensor]


class Learner:
    """A student with its source of teacher outputs and its terms.

    The loss is the sum over terms of weight x mean over the batch of sample weight x value. If a term returns one value
    per sample, the mean is over all B samples (for unlabelled samples, label losses return 0); if it returns a scalar,
    that is used as it is. Terms of weight 0, and views that only such terms read, are not computed.

    Args:
        model: the network that is trained.
        source: the teacher; ``None`` for label losses alone.
        terms: the loss terms by the name used in metrics and errors. ``0.9 * SoftTargets(4)`` is a weighted term; a
            weight can be a function of progress in [0, 1].
        trainable: which parameters are trained, a function of their names in the model's own ``state_dict``; by default
            all. Parameters that do not require gradients stay frozen. Fully frozen submodules stay in eval mode:
            neither their parameters nor their buffers (running statistics) change.
        options: the optimizer's options for a parameter of the model, a function of its name in the model's own
            ``state_dict``; ``None`` for those of the recipe, which the parameters of terms have too. For example no
            weight decay for biases and norms, or a lower learning rate for pretrained layers.
        sample_weight: a weight per sample, ``(forward_pass, progress) -> (B,)``, for the terms with a value per sample,
            except those ``for_all_samples``. It is called without gradients, once per step for each batch that such a
            term reads. An ``nn.Module`` is moved to the device and saved with the learner: its buffers are its state.
        deployed: the network that is evaluated and saved, if that is a part of ``model`` rather than all of it.
        evaluated: whether ``deployed`` is evaluated on the held-out split after each epoch; by default if a term reads
            the logits or a role that the task evaluates.
        name: the learner's name in metrics and errors.
    """

    def __init__(
        self,
        model: Tapped,
        source: Source | None,
        terms: Mapping[str, Term | Weighted],
        *,
        trainable: Callable[[str], bool] | None = None,
        options: Callable[[str], ParameterOptions | None] | None = None,
        sample_weight: SampleWeight | None = None,
        deployed: Tapped | None = None,
        evaluated: bool | None = None,
        name: str = "student",
    ) -> None:
        if not terms:
            raise TutelageError(
                'a learner needs at least one term, got none; give it terms, such as {"ce": CrossEntropy()}'
            )
        check_tapped("Learner", model, *([] if deployed is None else [deployed]))
        self.model, self.source, self.name = model, source, name
        self.deployed = model if deployed is None else deployed
        self.terms = {key: term if isinstance(term, Weighted) else Weighted(term) for key, term in terms.items()}
        self.trainable, self.options, self.sample_weight = trainable, options, sample_weight
        self.evaluated = evaluated
        self.modules = nn.ModuleDict({key: weighted.term for key, weighted in self.terms.items()})
        """The terms as one module: their parameters are trained, moved and saved with the learner."""
        if isinstance(sample_weight, nn.Module):
            self.modules["sample_weight"] = sample_weight
        self._modes: list[tuple[nn.Module, bool]] = []

    def views(self, progress: float | None = None) -> tuple[View, ...]:
        """The views of its terms; with ``progress``, only of terms whose weight is not 0 then."""
        views = (view for w in self._active(progress) for view in (w.view, w.other))
        return tuple(dict.fromkeys(view for view in views if view is not None))

    def roles(self, view: View | None = None) -> tuple[str, ...]:
        """The student's roles that terms and views read on the current batch, or that terms read on a view's batch."""
        readers: list[Term | View] = [w.term for w in self._active(None) if w.view is view]
        readers += () if view else self.views()
        roles = [role for reader in readers for role in reader.roles]
        # ``term.between(view, other)`` uses the student's outputs in place of a teacher's.
        roles += [role for w in self._active(None) if w.between and w.other is view for role in w.term.teacher_roles]
        return tuple(dict.fromkeys(roles))

    def reads(self, roles: Collection[str]) -> bool:
        """Whether a term reads one of these roles of the student."""
        return any(role in roles for view in (None, *self.views()) for role in self.roles(view))

    @property
    def reads_labels(self) -> bool:
        """Whether a term whose weight is not always 0 needs labels."""
        return any(w.term.reads_labels and not w.is_off for w in self.terms.values())

    def teacher_roles(self, progress: float | None = None, view: View | None = None) -> tuple[str, ...]:
        """The teacher's roles that are read; with ``progress``, only by terms whose weight is not 0 then."""
        readers: list[Term | View] = [w.term for w in self._active(progress) if w.view is view and not w.between]
        readers += () if view else self.views(progress)
        return tuple(dict.fromkeys(role for reader in readers for role in reader.teacher_roles))

    def _active(self, progress: float | None) -> list[Weighted]:
        return [w for w in self.terms.values() if progress is None or w.at(progress)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters for the optimizer: the model's trainable ones and those of the terms."""
        yield from (
            parameter for name, parameter in self.model.module.named_parameters() if self._is_trainable(name, parameter)
        )
        yield from (p for p in self.modules.parameters() if p.requires_grad)

    def parameter_options(self) -> dict[str, ParameterOptions]:
        """By name, the options of the model's trainable parameters that are not optimized as the recipe says.

        Raises:
            TutelageError: ``options`` returned something else.
        """
        chosen: dict[str, ParameterOptions] = {}
        if self.options is None:
            return chosen
        for name, parameter in self.model.module.named_parameters():
            choice = self.options(name) if self._is_trainable(name, parameter) else None
            if not isinstance(choice, ParameterOptions | None):
                raise TutelageError(
                    f"options of learner {self.name!r} must return ParameterOptions, or None for those of the recipe; "
                    f"for {name!r} it returned {value_text(choice)}"
                )
            if choice not in (None, RECIPE_OPTIONS):
                chosen[name] = choice
        return chosen

    def _is_trainable(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.requires_grad and (self.trainable is None or self.trainable(name))

    def train(self) -> None:
        """Set train mode, except for fully frozen submodules."""
        if self._modes and all(module.training is mode for module, mode in self._modes):
            return  # called in each step: checking the modes costs a hundredth of setting them
        self.model.train()
        self.modules.train()
        for module in self._frozen():
            module.training = False
        self._modes = [(module, module.training) for root in (self.model, self.modules) for module in root.modules()]

    def _frozen(self) -> Iterator[nn.Module]:
        """The submodules without trainable parameters.

        A submodule without parameters counts as the module that contains it; but with ``trainable``, one that has
        buffers is frozen.
        """
        has_trainable: dict[str, bool] = {}  # by name of each submodule that has parameters
        for name, parameter in self.model.module.named_parameters(remove_duplicate=False):
            is_trainable, ancestor = self._is_trainable(name, parameter), name
            while ancestor:
                ancestor = ancestor.rpartition(".")[0]
                has_trainable[ancestor] = has_trainable.get(ancestor, False) or is_trainable
        for name, module in self.model.module.named_modules():
            ancestor = name
            while ancestor and ancestor not in has_trainable:
                ancestor = ancestor.rpartition(".")[0]
            only_buffers = name not in has_trainable and next(module.buffers(recurse=False), None) is not None
            if not has_trainable.get(ancestor, True) or (only_buffers and self.trainable is not None):
                yield module

    def loss(self, passes: Mapping[View | None, ForwardPass], progress: float) -> tuple[Tensor, Tensor]:
        """The loss (), and each term's unweighted mean (terms,), detached; 0 for a term whose weight is 0.

        Args:
            passes: by view, with the current batch under ``None``.
            progress: the completed share of the fit, in [0, 1).
        """
        weights: dict[View | None, Tensor] = {}
        device = passes[None].batch.inputs.device
        total: Tensor | float = 0.0
        values = []
        for weighted in self.terms.values():
            factor = weighted.at(progress)
            if factor == 0:
                values.append(torch.zeros((), device=device))
                continue
            forward_pass = passes[weighted.view]
            teacher = passes[weighted.other].student if weighted.between else forward_pass.teacher
            value = weighted.term(forward_pass.student, teacher, forward_pass.batch)
            if value.ndim:
                weight = forward_pass.batch.weight
                if self.sample_weight is not None and not weighted.all_samples:
                    if weighted.view not in weights:
                        weights[weighted.view] = self._sample_weights(self.sample_weight, forward_pass, progress)
                    weight = weights[weighted.view]
                label_weight = forward_pass.batch.label_weight if weighted.term.reads_labels else None
                for factors in (weight, label_weight):
                    value = value if factors is None else value * factors.to(value)
                value = value.mean()
            values.append(value.detach().float())
            total = total + factor * value
        if not isinstance(total, Tensor):
            total = torch.zeros((), device=device, requires_grad=True)
        return total, torch.stack(values)

    @torch.no_grad()
    def _sample_weights(self, sample_weight: SampleWeight, forward_pass: ForwardPass, progress: float) -> Tensor:
        """The product of the batch's and the learner's sample weights, (B,)."""
        batch = forward_pass.batch
        weight = sample_weight(forward_pass, progress)
        if weight.shape != (len(batch),):
            raise TutelageError(
                f"sample_weight of learner {self.name!r} must return one number per sample, ({len(batch)},); "
                f"it returned shape {tuple(weight.shape)}"
            )
        return weight if batch.weight is None else weight * batch.weight


def roles_to_read(learner: Learner, cohort: Sequence[Learner]) -> tuple[str, ...]:
    """The roles of a learner's model that its own terms read, and those that its peers read of it."""
    roles = list(learner.roles())
    for peer in cohort:
        if peer.source is not None and learner.model in peer.source.reads:
            roles += peer.teacher_roles()
    return tuple(dict.fromkeys(roles))
