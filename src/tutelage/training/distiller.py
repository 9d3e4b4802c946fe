"""The losses of a student and its teacher, for your own training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.inputs import as_batch
from tutelage.models.modes import eval_mode, restore_state
from tutelage.models.outputs import Outputs
from tutelage.models.state import shared_tensors, shared_tensors_error
from tutelage.models.tapped import as_tapped
from tutelage.sources.frozen import Frozen
from tutelage.sources.source import Source
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner

TOTAL = "loss"


class Distiller(nn.Module):
    """A student, its teacher and its terms as one module, which maps ``(x, y)`` to a dictionary of losses.

    The loop is yours, with its optimizer, autocast, ``DistributedDataParallel(distiller)``, Lightning or a Hugging
    Face ``Trainer``. Each loss is the term's weight times its ``mean`` over samples, tokens or pixels; unlabelled ones
    do not count, unlike in ``fit``. ``"loss"`` is the sum.

    ``parameters()`` and ``state_dict()`` are those of the student and of the terms (for example a hint's regressor),
    never the teacher's. The teacher moves with ``.to(device)`` and stays in eval mode and without gradients. The
    student alone is the module that you passed, ``student.state_dict()``, or ``distiller.student.module``.

    Args:
        student: any network, or a ``Tapped`` with its own normalization or with layers named by hand.
        teacher: a network; several, whose probabilities are averaged; a source such as ``EMA(student)``, whose
            ``after_step`` your loop calls after each optimizer step; or ``None``, for terms that read no teacher.
        terms: by name, as in ``Learner``: ``{"ce": 0.1 * CrossEntropy(), "kd": 0.9 * SoftTargets(4.0)}``.

    Attributes:
        student, terms: the network as a ``Tapped``, and the terms, an ``nn.ModuleDict``.
        source: the teacher as a source, or ``None``.
        logits: the student's logits in the last call, detached; ``None`` if no term reads logits.

    Raises:
        TutelageError: a term is named "loss" or reads a view, the student shares weights with its teacher, or the
            student's wrapper hides layers that a term reads.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Source | Sequence[nn.Module] | None,
        terms: Mapping[str, Term | Weighted],
    ) -> None:
        super().__init__()
        if not isinstance(teacher, Source | None):
            teacher = Frozen(*(teacher if isinstance(teacher, Sequence) else [teacher]))
        self.student, self.source = as_tapped("Distiller", student), teacher
        self.logits: Tensor | None = None
        self._models = () if teacher is None else teacher.models
        self._learner = Learner(self.student, teacher, terms)
        self._built = False
        self.terms = self._learner.modules
        _check(self._learner)

    def build(self, x: Any) -> Distiller:
        """Create the parameters of terms from the shapes of one batch; call it before you create the optimizer.

        The networks run in eval mode; their modes and buffers are restored.
        """
        networks = [model.module for model in (self.student, *self._models)]
        with restore_state(*networks), eval_mode(self.student), torch.no_grad():
            _build(self.terms, *self._run(x, None, None)[:2])
        self._built = True
        return self

    def forward(self, x: Any, y: Any = None, *, progress: float | None = None) -> dict[str, Tensor]:
        """Return each term's weighted loss by its name, and ``"loss"``, their sum; all (), with gradients.

        Args:
            x: the inputs of student and teacher, as ``Tapped`` takes them: a tensor, a tuple of positional inputs, or a
                mapping of keyword inputs.
            y: labels, as the terms read them; ``None`` if none does.
            progress: the completed share of the training, in [0, 1], for weights that are functions of it.

        Raises:
            TutelageError: labels or progress are missing, shapes do not fit, or a term has parameters and ``build`` was
                not called.
        """
        for name, weighted in self._learner.terms.items():
            if y is None and weighted.term.reads_labels and not weighted.is_off:
                raise TutelageError(f"the term {name!r} reads labels; call distiller(x, y)")
            if progress is None and callable(weighted.weight):
                raise TutelageError(
                    f"the weight of {name!r} is a function of progress; call distiller(x, y, progress=step / steps)"
                )
        progress = progress or 0.0
        student, teacher, batch = self._run(x, y, progress if self._built else None)
        self.logits = None if student.logits is None else student.logits.detach()
        if not self._built:
            self._build_late(student, teacher)
        losses = {}
        for name, weighted in self._learner.terms.items():
            weight = weighted.at(progress)
            value = weighted.term.mean(student, teacher, batch) if weight else torch.zeros((), device=student.device)
            losses[name] = weight * value
        return {**losses, TOTAL: torch.stack(list(losses.values())).sum()}

    def _run(self, x: Any, y: Any, progress: float | None) -> tuple[Outputs, Outputs | None, Batch]:
        """The outputs of student and teacher for a batch; ``progress=None`` computes the roles of all terms.

        As in ``fit``, a teacher with networks of its own runs first.
        """
        batch, roles = as_batch(x, y), self._learner.teacher_roles(progress)
        source = self.source if roles else None
        teacher = source(batch, roles) if source is not None and not source.reads else None
        student = self.student.tap(batch.inputs, self._learner.roles())
        if source is not None and source.reads:
            teacher = source(batch, roles, {self.student: student})
        return student, teacher, batch

    def _build_late(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build terms without parameters, and refuse others, whose parameters no optimizer has."""
        trial = copy.deepcopy(self.terms)
        _build(trial, student, teacher)
        for name, term in trial.items():
            if len(list(term.parameters())) > len(list(self.terms[name].parameters())):
                raise TutelageError(
                    f"the term {name!r} has parameters whose shapes depend on a batch; call "
                    "distiller.build(x) once before you create the optimizer"
                )
        _build(self.terms, student, teacher)
        self._built = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for model in self._models:
            model._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _build(terms: nn.ModuleDict, student: Outputs, teacher: Outputs | None) -> None:
    for term in terms.values():
        with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
            term.build(student.detach(), teacher)  # type: ignore[operator]
        term.to(student.device)


def _check(learner: Learner) -> None:
    """Refuse learners that one call of a module cannot compute."""
    source, network = learner.source, learner.model.module
    if TOTAL in learner.terms:
        raise TutelageError(f"a term is named {TOTAL!r}, which is the sum of all; give it another name")
    if learner.views() or any(weighted.between for weighted in learner.terms.values()):
        raise TutelageError("a term on or between views needs other passes, which only fit makes; pass the term itself")
    if source is not None and any(model is not learner.model for model in source.reads):
        raise TutelageError(f"{type(source).__name__} reads students that only fit trains; give another teacher")
    if isinstance(network, DistributedDataParallel) and "logits" not in learner.roles():
        raise TutelageError(
            "no term reads logits, so that the student's pass ends early and its processes would not share gradients; "
            "give Distiller the bare student and train DistributedDataParallel(distiller)"
        )
    _check_compiled("student", network, learner.roles())
    for model in () if source is None else source.models:
        _check_compiled("teacher", model.module, learner.teacher_roles())
        if names := shared_tensors(network, model.module):
            raise TutelageError(shared_tensors_error("the student", "its teacher", names))


def _check_compiled(who: str, network: nn.Module, roles: Collection[str]) -> None:
    features = [role for role in roles if role != "logits"]
    if features and hasattr(network, "_orig_mod"):  # made by torch.compile
        raise TutelageError(
            f"a compiled {who} runs without the hooks that read its {features[0]}; give the network itself, wrapped as "
            "tapped = Tapped(network), and call tapped.compile()"
        )
