"""The base class of frozen values whose fields are validated, and their errors as one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tutelage.errors import TutelageError, unknown
from tutelage.parsing import check_plain
from tutelage.text import value_text


def validation_error(error: ValidationError, noun: str, known: Mapping[str, str]) -> TutelageError:
    """The first of pydantic's errors as one line, with the value or, for an unknown name, the known names.

    Args:
        error: the error of pydantic.
        noun: what the fields belong to, such as ``the configuration``.
        known: the names of the fields, each with a text that follows it in the list of known names.
    """
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in known) or str(
        (first["loc"] or ("",))[0]
    )
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown(f"setting of {noun}", name, known, descriptions=known)
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[0].lower() + problem[1:]
    return TutelageError(f"{noun}: {f'{name}: ' if name else ''}{problem} (got {value_text(first['input'])})")


def _as_text(value: Any) -> Any:
    """Convert paths, alone or in a list, to text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value)(map(_as_text, value)) if type(value) in (list, tuple) else value


class Fields(BaseModel):
    """Base class of frozen values with validated fields; a wrong value raises a ``TutelageError`` of one line."""

    noun: ClassVar[str] = "the configuration"
    saved: ClassVar[bool] = False
    """Whether values are saved to files: then fields accept only what ``parsing`` reads back unchanged."""
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, /, **fields: Any) -> None:
        fields = {name: _as_text(value) for name, value in fields.items()}
        try:
            super().__init__(**fields)
        except ValidationError as error:
            names = dict.fromkeys(type(self).model_fields, "")
            raise validation_error(error, self.noun, names) from None
        for name in type(self).model_fields if self.saved else ():
            try:
                check_plain(getattr(self, name))
            except ValueError as error:
                raise TutelageError(f"{self.noun}: {name}: {error}; give another value") from None

    def replace(self, **changes: Any) -> Any:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})
