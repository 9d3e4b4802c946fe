"""What a network gives for a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models.digest import Digest


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits and tapped features by role; for several teachers, also each one's own outputs.

    Attributes:
        logits: (B, C), or (B, L, C) for strings of L symbols; ``None`` when a forward pass was stopped at the last
            feature that was asked for. Of an ensemble: the logarithm of the mean of its members' probabilities.
        features: role to tensor: ``stage1`` .. ``stageN`` (B, C, H, W), ``embedding`` (B, D).
        members: the outputs of the single networks of an ensemble or a cohort; empty for one network.
    """

    logits: Tensor | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    members: tuple[Outputs, ...] = ()

    def __getitem__(self, role: str) -> Tensor:
        """The feature (or ``"logits"``) of this role; a digest that is not here is made of its bases."""
        if isinstance(role, Digest) and role not in self.features:
            return role.reduce(*(self[base] for base in role.bases))
        value = self.logits if role == "logits" else self.features.get(role)
        if value is None:
            had = [*(["logits"] if self.logits is not None else []), *self.features]
            why = (
                "an ensemble has no common features; use one teacher"
                if self.members
                else "a term must name it in `roles`"
            )
            raise TutelageError(f"no {role!r} in these outputs (they hold {', '.join(had) or 'nothing'}): {why}")
        return value

    def only(self, roles: Collection[str]) -> Outputs:
        """These roles and no others, digests made."""
        features = {role: self[role] for role in roles if role != "logits"}
        return Outputs(self.logits if "logits" in roles else None, features)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        tensors = [self.logits, *self.features.values()]
        return next((t.device for t in tensors if t is not None), None) or self.members[0].device

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """log softmax(logits / temperature), of the shape of the logits, (B, C) or (B, L, C), at least float32.

        Of an ensemble: the logarithm of the *mean of the softened probabilities*, which is not what softening the
        mean logits gives.
        """
        if self.members:
            each = torch.stack([member.log_probs(temperature) for member in self.members])
            return each.logsumexp(0) - math.log(len(self.members))
        return (at_least_float32(class_logits(self["logits"], places=True)) / temperature).log_softmax(-1)

    def detach(self) -> Outputs:
        """The same values, through which no gradient flows."""
        return self._each(Tensor.detach)

    def clone(self) -> Outputs:
        """Copies of the values, in memory of their own."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        return Outputs(
            None if self.logits is None else change(self.logits),
            {role: change(value) for role, value in self.features.items()},
            tuple(member._each(change) for member in self.members),
        )

    @classmethod
    def ensemble(cls, members: tuple[Outputs, ...]) -> Outputs:
        """Several networks as one, averaged in probability space; the one itself when it is alone.

        Where a member has no logits, since only features were asked for, neither has the ensemble.
        """
        if len(members) == 1:
            return members[0]
        together = cls(None, members=members)
        if any(member.logits is None for member in members):
            return together
        return cls(logits=together.log_probs(), members=members)


def class_logits(logits: Tensor, *, places: bool = False) -> Tensor:
    """The logits themselves, if they are (B, C) or, with ``places``, (B, L, C): a distribution at each of L places.

    Raises:
        TutelageError: for another shape, whose softmax would run over an axis that may be none of classes.
    """
    if logits.ndim not in ((2, 3) if places else (2,)):
        raise TutelageError(
            f"logits must be (B, C), a row a sample, got shape {tuple(logits.shape)}; move the classes last and "
            "flatten the other axes, as logits.movedim(1, -1).flatten(0, -2) does for maps (B, C, H, W)"
        )
    return logits


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are: losses are never computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
