"""Making external names, values and paths safe to print in messages, terminals and tables."""

from __future__ import annotations

import html
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from typing import Any

# Control characters but tab and newline, marks that change the direction of text, line separators, lone surrogates.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MESSAGE = 1200  # characters


def printable(text: str) -> str:
    """The text with control characters and invisible characters as escapes: ``\\x1b``, ``\\u202e``."""
    return _INVISIBLE.sub(lambda match: repr(match[0])[1:-1], text)


def printable_values(value: Any) -> Any:
    """Plain values (tables, lists, text, numbers) with all their text made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(printable_values, value))
    return value


def message(text: str) -> str:
    """One printable line of at most 1200 characters; the middle of a longer text is omitted."""
    line = printable(re.sub(r"\s*[\r\n]+\s*", " ", text.strip()))
    half = _MESSAGE // 2
    return line if len(line) <= _MESSAGE else f"{line[: half - 3]} ... {line[3 - half :]}"


def markdown_text(text: str) -> str:
    """The text as one line of Markdown, with HTML, table cells, links and images escaped."""
    line = " ".join(printable(text).split())
    return html.escape(line, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")


def csv_text(text: str) -> str:
    """The text as a csv cell; a ``'`` precedes text that a spreadsheet would read as a formula."""
    begin = unicodedata.normalize("NFKC", text.lstrip(" ")[:1])
    return f"'{printable(text)}" if begin and begin in "=+-@\t\r\n" else printable(text)


def value_text(value: object) -> str:
    """``repr(value)`` of limited length, for values of any size and depth."""
    return _VALUES.repr(value)


class _Values(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxlong = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """Describe huge integers: Python's ``repr`` raises an error above 4300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"an integer of {x.bit_length()} bits"


_VALUES = _Values()
