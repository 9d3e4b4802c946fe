"""Errors and warnings for the user: one line with the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from tutelage.text import message, value_text


class TutelageError(Exception):
    """An error that the user can correct: the command line prints only its text and exits with code 2.

    The text is converted to one printable line of limited length.
    """

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


class TutelageWarning(UserWarning):
    """A warning about something that works but is probably not intended. The text is one printable line."""

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""Errors that networks and terms raise for inputs of a wrong shape or kind."""


class NonFiniteError(TutelageError):
    """A loss, a weight or an input became NaN or infinite. The last good checkpoint is untouched.

    Attributes:
        indices: the samples of the batch on which it occurred, if known.
    """

    def __init__(self, text: str, indices: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.indices = list(indices)


def one_line(error: BaseException) -> str:
    """The first line of another library's error message, or the name of the error's class if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def unknown(
    kind: str, name: str, known: Iterable[str], hint: str = "", descriptions: Mapping[str, str] = MappingProxyType({})
) -> TutelageError:
    """An error for an unknown name, with the most similar known name.

    Args:
        kind: what the name is for.
        name: the unknown name.
        known: the known names.
        hint: the last sentence of the message.
        descriptions: a text that follows a name in the list of known names.
    """
    known = sorted(known)
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean {similar[0]!r}?" if similar else "."
    choices = f" Known: {', '.join(key + descriptions.get(key, '') for key in known)}." if known else " There are none."
    return TutelageError(f"unknown {kind} {value_text(name)}{guess}{choices}{' ' + hint if hint else ''}")
