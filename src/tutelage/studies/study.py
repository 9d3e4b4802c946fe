"""What a study asks, as a frozen value: data, conditions, pairs of networks, methods, seeds."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.config import OBJECT_PREFIX, Config, ExtraEvaluation, Fields, MethodName, method_name, read_config
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path
from tutelage.studies import PLAIN, TEACHER
from tutelage.trust import typed_specs

GRID_FIELDS = ("data", "noise", "imbalance", "per_class", "student", "teacher", "method", "settings", "seed")
"""Fields of ``Config`` that the study itself sets, run by run."""

PLACES = {"student": "students", "teacher": "teachers", "seed": "seeds", "method": "methods", "settings": "methods"}


MOST = 10_000
"""Seeds of a study, and trials of a row, at most: a misspelt number would fill the memory with a list of them."""


def _each(value: Any) -> Any:
    """One value, several, or several in a text with commas, as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def _conditions(value: Any) -> Any:
    """As ``_each``; numbers become their text, and whatever says that nothing is done becomes ``None``."""
    return tuple(None if one in (None, 0, "0", "0.0", "none", "clean") else f"{one}" for one in _each(value))


def _few(value: Any) -> Any:
    """As ``_each``; all samples are ``None``."""
    return tuple(None if one in (None, "none", "all") else one for one in _each(value))


def _pairs(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in value
    ):
        raise ValueError("pairs are a list of [teacher, student]")
    return tuple(value)


def _seeds(value: Any) -> Any:
    """A number of them, or the seeds themselves."""
    many = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.strip().isdecimal():
        value, many = int(value), True
    if many and not 1 <= value <= MOST:
        raise ValueError(f"a study has 1 to {MOST:,} seeds")
    return tuple(range(value)) if many else _each(value)


def _ways(value: Any) -> Any:
    """Rows of the table, from names, from tables with a method and its settings, or from both by the row's name."""
    if isinstance(value, Mapping):
        return {str(row): _way(how if how else {"method": row}) for row, how in value.items()}
    rows: dict[str, Any] = {}
    for one in _each(value):
        how = _way(one)
        settings = ", ".join(f"{key}={entry}" for key, entry in how["settings"].items())
        name = str(how["method"]).rpartition(":")[2]  # of FILE.py:NAME
        row = how.pop("row", None) or (f"{name}, {settings}" if settings else name)
        if row in rows:
            raise ValueError(f"there are two rows named {row!r}; give one of them another name with row")
        rows[row] = how
    return rows


def _way(value: Any) -> dict[str, Any]:
    if isinstance(value, Variant):
        return value.model_dump()
    value = method_name(value)
    if isinstance(value, str):
        return {"method": value, "settings": {}}
    if not isinstance(value, Mapping) or "method" not in value:
        raise ValueError("a method is a name or a table with method, and perhaps settings and row")
    strange = [key for key in value if key not in ("method", "settings", "row")]
    if strange:
        raise ValueError(f"{strange[0]!r} is no part of a method's table; it has method, settings and row")
    settings = value.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ValueError("the settings of a method are a table")
    return {**value, "method": method_name(value["method"]), "settings": dict(settings)}


class Variant(Fields):
    """A method and those of its parameters that are not left at their defaults."""

    noun: ClassVar[str] = "a method of the study"
    saved: ClassVar[bool] = True

    method: MethodName
    settings: dict[str, Any] = Field(default={})

    @field_validator("method")
    @classmethod
    def _importable(cls, value: str) -> str:
        if value.startswith(OBJECT_PREFIX):
            raise ValueError(
                "the processes of a study import its methods, and this one is in no file that they can import; put it "
                f"in one, and name it FILE.py:{value.rpartition('.')[2]}"
            )
        return value


Names = Annotated[tuple[str, ...], BeforeValidator(_each), Field(min_length=1)]
Conditions = Annotated[tuple[str | None, ...], BeforeValidator(_conditions), Field(min_length=1)]


class Study(Fields):
    """A grid: every method on every pair of networks, under every condition, with every seed.

    The plain student is always among the methods. Conditions are the product of ``data``, ``noise``, ``imbalance``,
    ``per_class`` and ``teacher_labels``; pairs are ``pairs``, or else the product of ``teachers`` and ``students``.
    """

    noun: ClassVar[str] = "the study"
    saved: ClassVar[bool] = True

    name: str = Field(default="study", min_length=1, description="what its report is called")
    task: str | None = Field(
        default=None,
        description="what the networks are for, which the methods and the data decide",
    )
    data: Names = Field(default=("digits",), description="data sets, as in Config")
    noise: Conditions = Field(default=(None,), description="label noises, as in Config; 0 for none")
    imbalance: Conditions = Field(default=(None,), description="imbalances, as in Config; none for none")
    per_class: Annotated[tuple[Annotated[int, Field(ge=1)] | None, ...], BeforeValidator(_few), Field(min_length=1)] = (
        Field(default=(None,), description="training samples of each class; none for all of them")
    )
    teacher_labels: Annotated[tuple[Literal["noisy", "clean"], ...], BeforeValidator(_each), Field(min_length=1)] = (
        Field(default=("noisy",), description="what teachers are trained on: the students' labels, or correct ones")
    )
    students: Names = Field(default=("resnet8x0.5",), description="networks to train")
    teachers: Names = Field(default=("resnet14x0.5",), description="networks to learn from")
    pairs: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)] = Field(
        default=(), description="[teacher, student], instead of all of both"
    )
    methods: Annotated[dict[str, Variant], BeforeValidator(_ways)] = Field(
        default=("hinton",), validate_default=True, description="rows of the table, beside the plain student"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**31 - 2)], ...], BeforeValidator(_seeds)] = Field(
        default=(0, 1, 2), min_length=1, description="how many, or which; paired over methods"
    )
    train: dict[str, Any] = Field(default={}, description="other fields of Config, the same for every run")
    evaluate: ExtraEvaluation = Field(
        default=ExtraEvaluation(), description="extra evaluation of every run: corruptions, attacks, OOD detection"
    )
    budget: int = Field(
        default=0, ge=0, le=MOST, description="settings tried for each method, judged on held-out training data"
    )
    search: dict[str, dict[str, tuple[Any, ...]]] = Field(
        default={}, description="for a row's parameter, [low, high] or the choices; otherwise around its default"
    )

    @field_validator(
        *("data", "noise", "imbalance", "per_class", "teacher_labels", "students", "teachers", "pairs", "seeds")
    )
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [one for one in value if value.count(one) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is in the list twice")
        return value

    @field_validator("methods")
    @classmethod
    def _with_plain(cls, value: dict[str, Variant]) -> dict[str, Variant]:
        if TEACHER in value:
            raise ValueError("a row cannot be named 'teacher', which is the teacher's own")
        if value.get(PLAIN, Variant(method=PLAIN)) != Variant(method=PLAIN):
            raise ValueError("the row 'plain' is the plain student, whose method is plain; give yours another name")
        return {PLAIN: Variant(method=PLAIN)} | value

    @field_validator("train")
    @classmethod
    def _not_its_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in GRID_FIELDS:
                place = PLACES.get(name, name)
                raise ValueError(f"the study sets {name!r} itself; say it under {place}, outside of train")
        Config(**value)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("a study is kept in a file, so train holds plain values: optimizer='AdamW', say") from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        for row in self.search:
            if row not in self.methods:
                raise unknown("row to search for", row, self.methods)
        if self.search and not self.budget:
            raise ValueError("search says what to try, but budget is 0; give it a number of trials")
        if self.budget and Config(**self.train).validation == 0:
            raise ValueError(
                "a budget is judged on held-out training data, and train.validation is 0; make it 0.1, say"
            )
        return self

    @property
    def all_pairs(self) -> tuple[tuple[str, str], ...]:
        """(teacher, student), each."""
        return self.pairs or tuple((teacher, student) for teacher in self.teachers for student in self.students)

    @property
    def code(self) -> frozenset[str]:
        """The specifications of its networks and methods, for ``check_trusted``."""
        return typed_specs(
            *(name for pair in self.all_pairs for name in pair), *(variant.method for variant in self.methods.values())
        )

    def as_json(self) -> dict[str, Any]:
        """As it is written to ``study.json``."""
        return {**self.model_dump(mode="json", exclude={"students", "teachers"}), "pairs": [*map(list, self.all_pairs)]}


def read_study(source: str | Path) -> dict[str, Any]:
    """The fields of a study: from a ``.toml``, ``.yaml`` or ``.json`` file, from a ``.py`` file that makes a ``Study``
    named ``study``, or from one that comes with the package, by name.

    Raises:
        TutelageError: there is none of this name, or the file cannot be read.
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
        raise TutelageError(f"{path} makes no study; it needs a line like study = tutelage.Study(data='digits')")
    return study.model_dump(include=study.model_fields_set)


def canonical(value: Any) -> str:
    """The one text of a JSON value, for comparing and hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
