"""Branching the last stage of a student."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.models.surgery import branch
from tutelage.models.surgery.branch import Branched
from tutelage.models.tapped import Tapped
from tutelage.training.run import Run


def branched_student(run: Run, method: str, branches: int, combine: str) -> tuple[Tapped, Branched]:
    """The run's student, and a network whose first branch it is.

    The last stage and the classifier are branched, including their normalisation layers; everything before them is
    shared. The other branches have the initial weights of the students number 1, 2, ...

    Args:
        run: the run.
        method: the method's name in errors.
        branches: their number.
        combine: as in ``branch.apply``.

    Raises:
        TutelageError: the student has no two stages, or the first but last is named by a layer's input.
    """
    student = run.trace(run.student())
    if len(student.stages) < 2:
        raise TutelageError(
            f"{method} branches the last stage, and {type(student.module).__name__} has {len(student.stages)} stage; "
            'name two, for example roles={"stage1": "layer1", "stage2": "layer2"}'
        )
    at = student.taps[student.stages[-2]]
    if at.of_input:
        raise TutelageError(f"{method} shares the layers up to {at}; name that layer by its output, without 'input:'")
    others = [run.student(number).module for number in range(1, branches)]
    example = run.example(student)
    return student, branch.apply(
        student.module, example, at=at.layer, branches=branches, combine=combine, others=others
    )
