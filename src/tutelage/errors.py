"""What the user did that cannot work, in one line with the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from tutelage.text import message, value_text


class TutelageError(Exception):
    """Something the user can mend: the command line prints its text alone and exits with code 2.

    The text becomes one printable line of limited length.
    """

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


class TutelageWarning(UserWarning):
    """Something that works and is probably not what the user meant. The text is one printable line."""

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What networks and terms fail with on inputs that they are not made for."""


class NonFiniteError(TutelageError):
    """A loss, a weight or an input became NaN or infinite. The last good checkpoint is untouched.

    Attributes:
        indices: the samples of the batch it came up on, where that is known.
    """

    def __init__(self, text: str, indices: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.indices = list(indices)


def one_line(error: BaseException) -> str:
    """The first line of somebody else's error message, or the name of its class when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> TutelageError:
    """An error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    choices = f" Known: {', '.join(known)}." if known else " There are none."
    return TutelageError(f"unknown {kind} {value_text(name)}{guess}{choices}{' ' + hint if hint else ''}")
