"""A file with a method."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]


# --- methods of the user's own files


OWN_FILE = dedent(
    """
    from __future__ import annotations

    from dataclasses import dataclass

    from own_helper import WEIGHT
    from tutelage import CrossEntropy, Learner, Run, Tapped, method
    from tutelage.methods import Positive


    @dataclass
    class Note:
        text: str


    @method(paper="none", family="own")
    def simple(run: Run, *, weight: Positive = WEIGHT) -> Tapped:
        '''Label loss alone.'''
        student = run.student()
        run.fit(Learner(student, None, {"ce": weight * CrossEntropy()}))
        return student


    other = 5
    """
)
