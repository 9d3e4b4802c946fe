"""Plain tensors in the place of ``Outputs`` and ``Batch``, for terms in a loop of one's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs, class_axis, classes_last, describe_output, find_logits
from tutelage.terms.targets import by_row

Values = Outputs | Tensor | Mapping[str, Tensor]
"""What a network gave: ``Outputs``, the tensor of the one role that a term reads, or a tensor for each role."""


def outputs_of(values: object, roles: Collection[str], who: str) -> Outputs:
    """What a network gave, as ``Outputs``.

    Args:
        values: ``Outputs``; the tensor of the one role; a mapping from roles to tensors; or an object with ``logits``.
        roles: what is read of it.
        who: the term and the network, for the error.

    Raises:
        TutelageError: it is something else, or one tensor where several roles are read.
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
            f"{who} reads {', '.join(bases) or 'nothing'} and was given {describe_output(values)}; give a mapping "
            f"{{{example}}}{', or the tensor itself' if len(bases) == 1 else ''}"
        )
    return Outputs(logits)


def by_place(
    student: Outputs, teacher: Outputs | None, batch: Batch | None, axis: int | None, *, reads_labels: bool
) -> tuple[Outputs, Outputs | None, Batch | None]:
    """Each token of (B, T, C) and each pixel of (B, C, H, W) as a sample of its own; samples (B, C) as they are.

    Args:
        student, teacher: with logits alone.
        batch: its targets are (B, T) or (B, H, W) class numbers, or of the shape of the logits.
        axis: the class axis, as in ``class_axis``.
        reads_labels: whether targets of another shape are an error.

    Raises:
        TutelageError: the teacher's logits have another shape, or the targets have another one than these.
    """
    logits = student.logits
    if logits is None or logits.ndim == 2:
        return student, teacher, batch
    for member in () if teacher is None else teacher.members or (teacher,):
        if member.logits is not None and member.logits.shape != logits.shape:
            raise TutelageError(
                f"outputs of shapes {tuple(logits.shape)} and {tuple(member.logits.shape)} cannot be compared; student "
                "and teacher need the same samples, places and classes"
            )
    if batch is not None:
        rows = logits.new_empty(logits.numel() // logits.shape[class_axis(logits, axis)])  # as many as there are places
        batch = as_batch(rows, by_row(batch.targets, logits, axis) if reads_labels else None)
    return _rows(student, axis), None if teacher is None else _rows(teacher, axis), batch


def _rows(outputs: Outputs, axis: int | None) -> Outputs:
    """The logits as (N, C), without features."""
    logits = None if outputs.logits is None else classes_last(outputs.logits, axis).flatten(0, -2)
    return Outputs(logits, {}, tuple(_rows(member, axis) for member in outputs.members))
