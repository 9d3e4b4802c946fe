"""What a network gives for a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits and tapped features by role; for several teachers, also each one's own outputs.

    Attributes:
        logits: (B, C), (B, T, C) for strings or tokens, (B, C, H, W) for maps; ``None`` when a forward pass was stopped
            at the last requested feature. Of an ensemble: the logarithm of the mean of its members' probabilities.
        features: role to tensor: ``stage1`` .. ``stageN`` (B, C, H, W), ``embedding`` (B, D).
        members: the outputs of the single networks of an ensemble or a cohort; empty for one network.
    """

    logits: Tensor | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    members: tuple[Outputs, ...] = ()

    def __getitem__(self, role: str) -> Tensor:
        """The feature (or ``"logits"``) of this role; a digest that is not here is made of its bases."""
        if isinstance(role, DerivedRole) and role not in self.features:
            return role.compute(*(self[base] for base in role.bases))
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

    def select(self, roles: Collection[str]) -> Outputs:
        """These roles and no others, digests made."""
        features = {role: self[role] for role in roles if role != "logits"}
        return Outputs(self.logits if "logits" in roles else None, features)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        tensors = [self.logits, *self.features.values()]
        return next((t.device for t in tensors if t is not None), None) or self.members[0].device

    def log_probs(self, temperature: float = 1.0, axis: int | None = None) -> Tensor:
        """log softmax(logits / temperature) along the class axis, of the shape of the logits, at least float32.

        ``axis`` is as in ``class_axis``. Of an ensemble: the logarithm of the *mean of the softened probabilities*,
        which is not what softening the mean logits gives.
        """
        if self.members:
            each = torch.stack([member.log_probs(temperature, axis) for member in self.members])
            return each.logsumexp(0) - math.log(len(self.members))
        logits = at_least_float32(self["logits"])
        return (logits / temperature).log_softmax(class_axis(logits, axis))

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


def class_axis(logits: Tensor, axis: int | None = None) -> int:
    """The axis of the classes, counted from the end.

    It is the last of (B, C) and of tokens (B, T, C), and the second of maps (B, C, H, W) and whatever has more axes.
    Torch's cross entropy has it second always: for its (B, C, T) give ``axis=1``.

    Args:
        logits: one distribution a sample, token or pixel.
        axis: to name it, of logits with more than two axes.

    Raises:
        TutelageError: the logits have fewer than two axes, or ``axis`` is the batch's or does not exist.
    """
    shape = tuple(logits.shape)
    if logits.ndim < 2:
        raise TutelageError(f"logits must be (B, C), (B, T, C) or (B, C, H, W), got shape {shape}; keep the batch axis")
    if axis is None or logits.ndim == 2:
        return 1 - logits.ndim if logits.ndim > 3 else -1
    if not 1 <= axis % logits.ndim < logits.ndim or not -logits.ndim <= axis < logits.ndim:
        raise TutelageError(f"axis={axis} is no class axis of logits {shape}; give one from 1 to {logits.ndim - 1}")
    return axis % logits.ndim - logits.ndim


def classes_last(values: Tensor, axis: int | None = None) -> Tensor:
    """Logits, or anything else of their shape, as (B, ..., C); ``axis`` is as in ``class_axis``."""
    place = class_axis(values, axis)
    return values if place == -1 else values.movedim(place, -1)


def class_logits(logits: Tensor) -> Tensor:
    """The logits themselves, if they are (B, C).

    Raises:
        TutelageError: for another shape, whose softmax would run over an axis that may be none of classes.
    """
    if logits.ndim != 2:
        raise TutelageError(
            f"logits must be (B, C), a row a sample, got shape {tuple(logits.shape)}; move the classes last and "
            "flatten the other axes, as logits.movedim(1, -1).flatten(0, -2) does for maps (B, C, H, W)"
        )
    return logits


def find_logits(returned: object) -> Tensor | None:
    """The logits in what a network returned, or ``None``.

    They are the tensor itself, what a mapping or an object calls ``logits`` (as those of Hugging Face do), or the first
    of a tuple, if that is a tensor with a batch axis and no loss.
    """
    if isinstance(returned, Tensor):
        return returned
    logits: object = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if logits is None and isinstance(returned, tuple | list) and returned:
        logits = returned[0]
    return logits if isinstance(logits, Tensor) and logits.ndim else None


def describe_output(returned: object) -> str:
    """What a network returned, for an error: its type, and the shapes of the tensors in it."""
    name = type(returned).__name__
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"{name} with {', '.join(f'{key}: {_shape(value)}' for key, value in list(returned.items())[:8])}"
    if isinstance(returned, tuple | list):
        return f"{name} of {', '.join(_shape(value) for value in returned[:8]) or 'nothing'}"
    return name


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are: losses are never computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
