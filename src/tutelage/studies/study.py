"""The declaration of a study: data, conditions, pairs of networks, methods and seeds."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.config import OBJECT_PREFIX, Config, ExtraEvaluation, MethodName, method_name, read_config
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.fields import Fields
from tutelage.files import as_path
from tutelage.studies import PLAIN, TEACHER
from tutelage.trust import typed_specs

GRID_FIELDS = ("data", "noise", "imbalance", "per_class", "student", "teacher", "method", "settings", "seed")
"""Fields of ``Config`` that the study sets for each run."""

STUDY_FIELDS = {
    "student": "students",
    "teacher": "teachers",
    "seed": "seeds",
    "method": "methods",
    "settings": "methods",
}
"""The field of ``Study`` for a field of ``Config``, where their names differ."""

MAX_COUNT = 10_000
"""The largest number of seeds, and of trials per row, so that a misspelt number does not fill the memory."""


def _as_tuple(value: Any) -> Any:
    """Return one value, several values, or comma-separated text as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def _conditions(value: Any) -> Any:
    """Like ``_as_tuple``; numbers become text, and values for unchanged data (0, none, clean) become ``None``."""
    return tuple(None if entry in (None, 0, "0", "0.0", "none", "clean") else f"{entry}" for entry in _as_tuple(value))


def _per_class(value: Any) -> Any:
    """Like ``_as_tuple``; ``none`` and ``all`` (all samples) become ``None``."""
    return tuple(None if entry in (None, "none", "all") else entry for entry in _as_tuple(value))


def _pairs(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in value
    ):
        raise ValueError("pairs are a list of [teacher, student]")
    return tuple(value)


def _seeds(value: Any) -> Any:
    """Return the seeds from their number, or from a list of them."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.strip().isdecimal():
        value, is_count = int(value), True
    if is_count and not 1 <= value <= MAX_COUNT:
        raise ValueError(f"a study has 1 to {MAX_COUNT:,} seeds")
    return tuple(range(value)) if is_count else _as_tuple(value)


def _variants(value: Any) -> Any:
    """Return variants by row name, from names, tables with a method and its settings, or a mapping of rows."""
    if isinstance(value, Mapping):
        return {str(row): _variant(entry or {"method": row}) for row, entry in value.items()}
    rows: dict[str, Any] = {}
    for entry in _as_tuple(value):
        variant = _variant(entry)
        settings = ", ".join(f"{key}={setting}" for key, setting in variant["settings"].items())
        name = str(variant["method"]).rpartition(":")[2]  # of FILE.py:NAME
        row = variant.pop("row", None) or (f"{name}, {settings}" if settings else name)
        if row in rows:
            raise ValueError(f"there are two rows named {row!r}; give one of them another name with row")
        rows[row] = variant
    return rows


def _variant(value: Any) -> dict[str, Any]:
    if isinstance(value, Variant):
        return value.model_dump()
    value = method_name(value)
    if isinstance(value, str):
        return {"method": value, "settings": {}}
    if not isinstance(value, Mapping) or "method" not in value:
        raise ValueError("a method is a name or a table with method, and perhaps settings and row")
    extra_keys = [key for key in value if key not in ("method", "settings", "row")]
    if extra_keys:
        raise ValueError(f"{extra_keys[0]!r} is not a key of a method's table; its keys are method, settings and row")
    settings = value.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ValueError("the settings of a method are a table")
    return {**value, "method": method_name(value["method"]), "settings": dict(settings)}


class Variant(Fields):
    """A method and the parameters that do not have their default values."""

    noun: ClassVar[str] = "a method of the study"
    saved: ClassVar[bool] = True

    method: MethodName
    settings: dict[str, Any] = Field(default={})

    @field_validator("method")
    @classmethod
    def _importable(cls, value: str) -> str:
        if value.startswith(OBJECT_PREFIX):
            raise ValueError(
                "the processes of a study import its methods, and cannot import this one; put it in a file, and name "
                f"it FILE.py:{value.rpartition('.')[2]}"
            )
        return value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Conditions = Annotated[tuple[str | None, ...], BeforeValidator(_conditions), Field(min_length=1)]


class Study(Fields):
    """A grid: every method on every pair of networks, under every condition, with every seed.

    The plain student is always among the methods. Conditions are the product of ``data``, ``noise``, ``imbalance``,
    ``per_class`` and ``teacher_labels``; pairs are ``pairs``, or else the product of ``teachers`` and ``students``.
    """

    noun: ClassVar[str] = "the study"
    saved: ClassVar[bool] = True

    name: str = Field(default="study", min_length=1, description="title of the report")
    task: str | None = Field(
        default=None,
        description="task of the networks, determined by the methods and the data",
    )
    data: Names = Field(default=("digits",), description="data sets, as in Config")
    noise: Conditions = Field(default=(None,), description="label noises, as in Config; 0 for none")
    imbalance: Conditions = Field(default=(None,), description="imbalances, as in Config; none for none")
    per_class: Annotated[
        tuple[Annotated[int, Field(ge=1)] | None, ...], BeforeValidator(_per_class), Field(min_length=1)
    ] = Field(default=(None,), description="training samples of each class; none for all of them")
    teacher_labels: Annotated[
        tuple[Literal["noisy", "clean"], ...], BeforeValidator(_as_tuple), Field(min_length=1)
    ] = Field(default=("noisy",), description="training labels of teachers: the students' (noisy) or correct ones")
    students: Names = Field(default=("resnet8x0.5",), description="networks to train")
    teachers: Names = Field(default=("resnet14x0.5",), description="networks to learn from")
    pairs: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)] = Field(
        default=(), description="[teacher, student] pairs, instead of all combinations"
    )
    methods: Annotated[dict[str, Variant], BeforeValidator(_variants)] = Field(
        default=("hinton",), validate_default=True, description="rows of the table, in addition to the plain student"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**31 - 2)], ...], BeforeValidator(_seeds)] = Field(
        default=(0, 1, 2), min_length=1, description="number of seeds, or a list of them; paired over methods"
    )
    train: dict[str, Any] = Field(default={}, description="other fields of Config, the same for every run")
    evaluate: ExtraEvaluation = Field(
        default=ExtraEvaluation(), description="extra evaluation of every run: corruptions, attacks, OOD detection"
    )
    budget: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="settings tried for each method, evaluated on held-out training data"
    )
    search: dict[str, dict[str, tuple[Any, ...]]] = Field(
        default={}, description="[low, high] or choices for a row's parameter; otherwise a range around its default"
    )

    @field_validator(
        *("data", "noise", "imbalance", "per_class", "teacher_labels", "students", "teachers", "pairs", "seeds")
    )
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        repeated = [entry for entry in value if value.count(entry) > 1]
        if repeated:
            raise ValueError(f"{repeated[0]!r} is in the list twice")
        return value

    @field_validator("methods")
    @classmethod
    def _with_plain(cls, value: dict[str, Variant]) -> dict[str, Variant]:
        if TEACHER in value:
            raise ValueError("a row cannot be named 'teacher', which is the row of the teacher")
        if value.get(PLAIN, Variant(method=PLAIN)) != Variant(method=PLAIN):
            raise ValueError("the row 'plain' is the plain student, whose method is plain; give this row another name")
        return {PLAIN: Variant(method=PLAIN)} | value

    @field_validator("train")
    @classmethod
    def _without_grid_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in GRID_FIELDS:
                field = STUDY_FIELDS.get(name, name)
                raise ValueError(f"the study sets {name!r} itself; set {field} of the study instead, outside of train")
        Config(**value)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                "a study is saved to a file, so train must hold plain values, for example optimizer='AdamW'"
            ) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        for row in self.search:
            if row not in self.methods:
                raise unknown("row to search for", row, self.methods)
        if self.search and not self.budget:
            raise ValueError("search is set, but budget is 0; set budget to a number of trials")
        if self.budget and Config(**self.train).validation == 0:
            raise ValueError(
                "trials are evaluated on held-out training data, but train.validation is 0; set it to 0.1, for example"
            )
        return self

    @property
    def all_pairs(self) -> tuple[tuple[str, str], ...]:
        """The (teacher, student) pairs."""
        return self.pairs or tuple((teacher, student) for teacher in self.teachers for student in self.students)

    @property
    def code(self) -> frozenset[str]:
        """The specifications of the study's networks and methods, for ``check_trusted``."""
        return typed_specs(
            *(name for pair in self.all_pairs for name in pair), *(variant.method for variant in self.methods.values())
        )

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``study.json``."""
        return {**self.model_dump(mode="json", exclude={"students", "teachers"}), "pairs": [*map(list, self.all_pairs)]}


def read_study(source: str | Path) -> dict[str, Any]:
    """Read the fields of a study.

    Args:
        source: a ``.toml``, ``.yaml`` or ``.json`` file, a ``.py`` file that defines a ``Study`` named ``study``, or
            the name of a study of the package.

    Raises:
        TutelageError: there is no such study, or the file cannot be read.
    """
    presets = {file.name.removesuffix(".toml"): file for file in (files(__package__) / "presets").iterdir()}
    path = as_path(source)
    if str(source) in presets and not path.is_file():
        path = Path(str(presets[str(source)]))
    elif not path.is_file() and not path.suffix:
        raise unknown("study", str(source), sorted(presets), "Or name a file: my-study.toml.")
    if path.suffix != ".py":
        return read_config(path)
    try:
        study = runpy.run_path(str(path)).get("study")
    except Exception as error:  # whatever the file does
        raise TutelageError(f"{path} cannot be run: {one_line(error)}") from error
    if not isinstance(study, Study):
        raise TutelageError(f"{path} defines no study; it needs a line like study = tutelage.Study(data='digits')")
    return study.model_dump(include=study.model_fields_set)


def canonical(value: Any) -> str:
    """Return the canonical text of a JSON value, for comparison and hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
