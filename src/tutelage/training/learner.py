"""A model, who teaches it, and what it is to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources.source import Source
from tutelage.terms.term import Term, Weighted


class Learner:
    """A student with its source and its terms.

    Its loss is the sum over terms of weight x mean over the batch of sample weight x value. A term with a value per
    sample is averaged here, over all B samples (one without a label counts, with the 0 that label losses give it); one
    that has a single value is taken as it is. A term whose weight is 0 is not computed.

    Args:
        model: what learns.
        source: who teaches; ``None`` for label losses alone.
        terms: what is matched, by a name that metrics and errors use. ``0.9 * SoftTargets(4)`` weighs one; a weight may
            be a function of progress in [0, 1].
        trains: which parameters learn, by their names in the model's own ``state_dict``; all of them if ``None``. What
            does not learn does not move: its weights stay, and layers of which no weight learns keep their buffers.
        sample_weight: a weight per sample, ``batch -> (B,)``, for every term with a value per sample.
        name: what metrics and errors call it.
    """

    def __init__(
        self,
        model: Tapped,
        source: Source | None,
        terms: Mapping[str, Term | Weighted],
        *,
        trains: Callable[[str], bool] | None = None,
        sample_weight: Callable[[Batch], Tensor] | None = None,
        name: str = "student",
    ) -> None:
        if not terms:
            raise ValueError("a learner needs at least one term")
        self.model, self.source, self.name = model, source, name
        self.terms = {key: term if isinstance(term, Weighted) else Weighted(term) for key, term in terms.items()}
        self.trains, self.sample_weight = trains, sample_weight
        self.modules = nn.ModuleDict({key: weighted.term for key, weighted in self.terms.items()})
        """Its terms, as one module: what they own is trained, moved and kept with the learner."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What its terms read of the student."""
        return tuple(dict.fromkeys(role for weighted in self.terms.values() for role in weighted.term.roles))

    def teacher_roles(self, progress: float) -> tuple[str, ...]:
        """What the terms that count at this point of the run read of the teacher."""
        active = [weighted.term for weighted in self.terms.values() if weighted.at(progress)]
        return tuple(dict.fromkeys(role for term in active for role in term.teacher_roles))

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser is given: the parameters that learn, and those of the terms."""
        for name, parameter in self.model.module.named_parameters():
            if parameter.requires_grad and (self.trains is None or self.trains(name)):
                yield parameter
        yield from (p for p in self.modules.parameters() if p.requires_grad)

    def train(self) -> None:
        """Train mode, except for the layers that hold weights or buffers of which none learns."""
        self.model.train()
        self.modules.train()
        if self.trains is None:
            return
        for prefix, module in self.model.module.named_modules():
            own = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            holds = own or next(module.buffers(recurse=False), None) is not None
            if holds and not any(self.trains(name) for name in own):
                module.training = False

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """The total (), and each term's unweighted mean (terms,), detached; 0 for a term whose weight is 0."""
        weight = None if self.sample_weight is None else self.sample_weight(batch)
        if weight is not None and weight.shape != (len(batch),):
            raise TutelageError(
                f"sample_weight of learner {self.name!r} must give one number a sample, ({len(batch)},); "
                f"it gave shape {tuple(weight.shape)}"
            )
        total: Tensor | float = 0.0
        values = []
        for weighted in self.terms.values():
            factor = weighted.at(progress)
            if factor == 0:
                values.append(torch.zeros((), device=batch.inputs.device))
                continue
            value = weighted.term(student, teacher, batch)
            if value.ndim:
                value = (value if weight is None else value * weight.to(value)).mean()
            values.append(value.detach().float())
            total = total + factor * value
        if not isinstance(total, Tensor):
            total = torch.zeros((), device=batch.inputs.device, requires_grad=True)
        return total, torch.stack(values)
