"""Conversion of plain tensors to ``Outputs`` and ``Batch``, for terms in your own training loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs, class_axis, classes_last, describe_output, find_logits
from tutelage.terms.targets import flat_targets

Values = Outputs | Tensor | Mapping[str, Tensor]
"""The outputs of a network: ``Outputs``, the tensor of the one role that a term reads, or a tensor for each role."""


def outputs_of(values: object, roles: Collection[str], owner: str) -> Outputs:
    """Convert the outputs of a network to ``Outputs``.

    Args:
        values: ``Outputs``; the tensor of the one role; a mapping from roles to tensors; or an object with ``logits``.
        roles: the roles that the term reads.
        owner: names the term and the network in errors.

    Raises:
        TutelageError: ``values`` is of another type, or a single tensor although the term reads several roles.
    """
    if isinstance(values, Outputs):
        return values
    bases = dict.fromkeys(base for role in roles for base in (role.bases if isinstance(role, DerivedRole) else (role,)))
    if isinstance(values, Mapping):
        tensors = {role: value for role, value in values.items() if isinstance(value, Tensor)}
        return Outputs(tensors.pop("logits", None), tensors)
    if isinstance(values, Tensor) and len(bases) == 1:
        return Outputs(values) if "logits" in bases else Outputs(None, dict.fromkeys(bases, values))
    logits = None if isinstance(values, Tensor | tuple | list) else find_logits(values)
    if logits is None:
        example = ", ".join(f"{role!r}: tensor" for role in bases) or "'logits': tensor"
        raise TutelageError(
            f"{owner}'s outputs must hold {', '.join(bases) or 'nothing'}, got {describe_output(values)}; pass a "
            f"mapping {{{example}}}{', or the tensor itself' if len(bases) == 1 else ''}"
        )
    return Outputs(logits)


def flatten_positions(
    student: Outputs, teacher: Outputs | None, batch: Batch | None, axis: int | None, *, reads_labels: bool
) -> tuple[Outputs, Outputs | None, Batch | None]:
    """Make each token of (B, T, C) and each pixel of (B, C, H, W) a sample; logits (B, C) are returned unchanged.

    Args:
        student, teacher: outputs with logits alone.
        batch: its targets are (B, T) or (B, H, W) class numbers, or of the shape of the logits.
        axis: the class axis, as in ``class_axis``.
        reads_labels: whether targets of another shape are an error.

    Raises:
        TutelageError: the teacher's logits or the targets have another shape.
    """
    logits = student.logits
    if logits is None or logits.ndim == 2:
        return student, teacher, batch
    for member in () if teacher is None else teacher.members or (teacher,):
        if member.logits is not None and member.logits.shape != logits.shape:
            raise TutelageError(
                f"outputs of shapes {tuple(logits.shape)} and {tuple(member.logits.shape)} cannot be compared; student "
                "and teacher need the same samples, positions and classes"
            )
    if batch is not None:
        rows = logits.new_empty(logits.numel() // logits.shape[class_axis(logits, axis)])  # one per position
        batch = as_batch(rows, flat_targets(batch.targets, logits, axis) if reads_labels else None)
    return _rows(student, axis), None if teacher is None else _rows(teacher, axis), batch


def _rows(outputs: Outputs, axis: int | None) -> Outputs:
    """The logits as (N, C), without features."""
    logits = None if outputs.logits is None else classes_last(outputs.logits, axis).flatten(0, -2)
    return Outputs(logits, {}, tuple(_rows(member, axis) for member in outputs.members))
