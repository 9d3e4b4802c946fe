"""The outputs of a network for a batch: logits and features by role."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits and features by role; for an ensemble also the outputs of each member.

    Attributes:
        logits: (B, C), (B, T, C) for strings or tokens, (B, C, H, W) for dense predictions; ``None`` if the forward
            pass stopped at the last requested feature. For an ensemble, the logarithm of its members' mean
            probabilities.
        features: role to tensor: ``stage1`` .. ``stageN`` (B, C, H, W), ``embedding`` (B, D).
        members: the outputs of the networks of an ensemble or a cohort; empty for one network.
    """

    logits: Tensor | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    members: tuple[Outputs, ...] = ()

    def __getitem__(self, role: str) -> Tensor:
        """The feature (or ``"logits"``) of this role; a missing derived role is computed from its bases.

        Raises:
            TutelageError: the role is missing.
        """
        if isinstance(role, DerivedRole) and role not in self.features:
            return role.compute(*(self[base] for base in role.bases))
        value = self.logits if role == "logits" else self.features.get(role)
        if value is None:
            present = [*(["logits"] if self.logits is not None else []), *self.features]
            reason = (
                "an ensemble has no common features; use one teacher"
                if self.members
                else "a term must name it in `roles`"
            )
            raise TutelageError(f"no {role!r} in these outputs (they hold {', '.join(present) or 'nothing'}): {reason}")
        return value

    def select(self, roles: Collection[str]) -> Outputs:
        """Outputs with these roles only; derived roles are computed."""
        features = {role: self[role] for role in roles if role != "logits"}
        return Outputs(self.logits if "logits" in roles else None, features)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        tensors = [self.logits, *self.features.values()]
        return next((t.device for t in tensors if t is not None), None) or self.members[0].device

    def log_probs(self, temperature: float = 1.0, axis: int | None = None) -> Tensor:
        """log softmax(logits / temperature) along the class axis, in the shape of the logits, at least float32.

        For an ensemble, the logarithm of the *mean of the softened probabilities* of its members, which differs from
        softening the ensemble's logits. ``axis`` is as in ``class_axis``.
        """
        if self.members:
            log_probs = torch.stack([member.log_probs(temperature, axis) for member in self.members])
            return log_probs.logsumexp(0) - math.log(len(self.members))
        logits = at_least_float32(self["logits"])
        return (logits / temperature).log_softmax(class_axis(logits, axis))

    def detach(self) -> Outputs:
        """The same values without gradients."""
        return Outputs(
            None if self.logits is None else self.logits.detach(),
            {role: value.detach() for role, value in self.features.items()},
            tuple(member.detach() for member in self.members),
        )

    @classmethod
    def ensemble(cls, members: tuple[Outputs, ...]) -> Outputs:
        """The outputs of an ensemble, which averages probabilities; for one member, the member itself.

        Without logits if a member has none (only features were requested).
        """
        if len(members) == 1:
            return members[0]
        outputs = cls(None, members=members)
        if any(member.logits is None for member in members):
            return outputs
        return cls(logits=outputs.log_probs(), members=members)


def class_axis(logits: Tensor, axis: int | None = None) -> int:
    """The axis of the classes, counted from the end.

    It is the last axis of (B, C) and of tokens (B, T, C), and the second of maps (B, C, H, W) and of logits with more
    axes. In torch's cross entropy it is always the second: for (B, C, T) give ``axis=1``.

    Args:
        logits: one distribution per sample, token or pixel.
        axis: the class axis, for logits with more than two axes.

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
    """Logits, or values of their shape, as (B, ..., C); ``axis`` is as in ``class_axis``."""
    class_dim = class_axis(values, axis)
    return values if class_dim == -1 else values.movedim(class_dim, -1)


def class_logits(logits: Tensor) -> Tensor:
    """The logits unchanged, after a check that their shape is (B, C).

    Raises:
        TutelageError: another shape, where a softmax over axis 1 may not run over classes.
    """
    if logits.ndim != 2:
        raise TutelageError(
            f"logits must be (B, C), one row per sample, got shape {tuple(logits.shape)}; move the classes last and "
            "flatten the other axes, as logits.movedim(1, -1).flatten(0, -2) does for maps (B, C, H, W)"
        )
    return logits


def logits_of(network: nn.Module, output: object) -> Tensor:
    """The logits in the output of a network, as ``find_logits`` finds them.

    Raises:
        TutelageError: there are none.
    """
    logits = find_logits(output)
    if logits is None:
        mode = "train" if network.training else "eval"
        raise TutelageError(
            f"{type(network).__name__} returns no logits in {mode} mode, but {describe_output(output)}; "
            "give a network that returns logits (B, classes): a tensor, a tuple that begins with it, or a mapping "
            "or an object with 'logits'"
        )
    return logits


def find_logits(output: object) -> Tensor | None:
    """The logits in the output of a network, or ``None``.

    They are the output itself if it is a tensor, the item or attribute ``logits`` of a mapping or an object (as in
    Hugging Face models), or the first element of a tuple, if it is a tensor with a batch axis (a scalar is a loss).
    """
    if isinstance(output, Tensor):
        return output
    logits: object = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    return logits if isinstance(logits, Tensor) and logits.ndim else None


def first_tensor(value: object) -> Tensor | None:
    """The value itself if it is a tensor, or the first tensor of a tuple (attention layers), list or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list) and value:
        return first_tensor(value[0])
    return None


def describe_output(output: object) -> str:
    """The type of a network's output and the shapes of its tensors, for an error message."""
    name = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{name} with {', '.join(f'{key}: {_shape(value)}' for key, value in list(output.items())[:8])}"
    if isinstance(output, tuple | list):
        return f"{name} of {', '.join(_shape(value) for value in output[:8]) or 'nothing'}"
    return name


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others unchanged: losses are never computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
