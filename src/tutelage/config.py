"""What a run is told, as frozen values: how to train, on what, and everything together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from tutelage.errors import TutelageError, one_line, unknown
from tutelage.parsing import parse_toml, parse_yaml, write_yaml
from tutelage.text import value_text


def error_in(error: ValidationError, what: str, known: Mapping[str, str]) -> TutelageError:
    """The first thing wrong with some fields, as one line with the value and, for an unknown name, the known ones."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in known) or str(
        (first["loc"] or ("",))[0]
    )
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown(f"setting of {what}", name, [f"{key}{kind}" for key, kind in known.items()])
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[0].lower() + problem[1:]
    return TutelageError(f"{what}: {name}: {problem} (got {value_text(first['input'])})")


def _as_text(value: Any) -> Any:
    """Paths as texts, alone or in a list."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value)(map(_as_text, value)) if type(value) in (list, tuple) else value


class Fields(BaseModel):
    """A frozen value made of checked fields; a wrong one is refused in one line."""

    what: ClassVar[str] = "the configuration"
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, /, **fields: Any) -> None:
        fields = {name: _as_text(value) for name, value in fields.items()}
        try:
            super().__init__(**fields)
        except ValidationError as error:
            names = dict.fromkeys(type(self).model_fields, "")
            raise error_in(error, self.what, names) from None

    def but(self, **changes: Any) -> Any:
        """The same with some fields changed, checked again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class Recipe(Fields):
    """How networks are trained: the optimiser and its schedule. The defaults are the field's, scaled to batch 64."""

    epochs: int = Field(default=20, ge=1, description="passes over the training part")
    batch_size: int = Field(default=64, ge=1, description="samples a step, over all processes")
    optimizer: str | Callable[..., Any] = Field(default="SGD", description="any optimiser of torch.optim by name")
    lr: float = Field(default=0.05, gt=0, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum, for optimisers that have it")
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum, for optimisers that have it")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay of every parameter")
    schedule: Literal["step", "cosine", "constant"] = Field(default="step", description="course of the learning rate")
    milestones: tuple[float, ...] = Field(
        default=(0.3, 0.6, 0.8), description="where 'step' drops, as shares of the run"
    )
    gamma: float = Field(default=0.2, gt=0, le=1, description="the factor of each drop of 'step'")
    warmup: float = Field(default=0.0, ge=0, description="epochs of linear warm-up")
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm of a learner")

    @field_validator("milestones")
    @classmethod
    def _ordered(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value) or any(not 0 < share < 1 for share in value):
            raise ValueError("milestones are rising shares of the run, each between 0 and 1")
        return value


CompileWhen = Literal["auto", "reduce-overhead", "max-autotune"]
Compile = bool | CompileWhen


class Hardware(Fields):
    """What the networks run on. ``auto`` and ``None`` become what helps on the device, and are recorded as that."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the networks' passes; auto is bfloat16 where there are instructions for it"
    )
    channels_last: bool | None = Field(default=None, description="channels-last memory layout")
    compile: Compile = Field(
        default=False,
        description="run the networks through torch.compile: true, false, auto for long runs alone, or a mode of it "
        "that has CUDA graphs: reduce-overhead, max-autotune",
    )
    workers: int = Field(default=2, ge=0, description="processes that read image files")

    @field_validator("compile", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = ("true", "false", *get_args(CompileWhen))
        if isinstance(value, str) and value not in known:
            raise ValueError(f"say {', '.join(known[:-1])} or {known[-1]}")
        return value


FLAG: tuple[Any, ...] = (bool, bool | None)
"""The kinds of fields that are said by their name alone on the command line, or by --no-NAME."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Config(Recipe, Hardware):
    """Everything a run depends on. Written to its folder; running that file again gives the same numbers."""

    data: str = Field(default="digits", description="digits, idx:FOLDER, npz:FILE, folder:PATH or hf:REPO")
    image_size: int | None = Field(default=None, ge=4, description="resize image files to this many pixels a side")
    per_class: int | None = Field(default=None, ge=1, description="train on this many samples of each class")
    imbalance: str | None = Field(
        default=None, description="rare classes: powerlaw:GAMMA[:MAX:MIN], longtail:FACTOR or step:SHARE:FACTOR"
    )
    noise: str | None = Field(
        default=None,
        description="wrong labels: RATE, uniform:RATE, pair:RATE, instance:RATE, matrix:FILE, human:FILE:COLUMN; "
        "absent ones: missing:RATE; checked ones: trusted:NUMBER a class; several in turn: 0.4+missing:0.5",
    )
    validation: float = Field(default=0.1, ge=0, lt=1, description="share of the training part held out to select by")
    augment: bool = Field(default=True, description="the data set's own crops and flips")
    views: int | None = Field(default=None, ge=1, description="use only so many of the crops and flips, the same ones")
    student: str = Field(default="resnet8", description="resnet8, wrn-16-2, module:attr, timm/NAME, hf/NAME")
    pretrained: bool = Field(default=False, description="start a timm or hf student from its published weights")
    teacher: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        default=(), description="a run's folder, or MODEL@WEIGHTS; several are averaged"
    )
    answers: str | None = Field(
        default=None, description="a folder in which the teacher's answers are kept, and found again by other runs"
    )
    answers_as: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="precision of kept answers; of float32 nothing is lost"
    )
    method: str = Field(default="plain", description="how to teach; see tutelage methods")
    settings: dict[str, Any] = Field(default={}, description="the method's own parameters")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of weights, batches and label noise")

    def recipe(self) -> Recipe:
        """The part that says how to train."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})

    def hardware(self) -> Hardware:
        """The part that says on what."""
        return Hardware(**{name: getattr(self, name) for name in Hardware.model_fields})

    def as_yaml(self) -> str:
        """The configuration as a file that ``read_config`` takes."""
        values = self.model_dump(
            mode="json", fallback=lambda value: f"given:{getattr(value, '__qualname__', type(value).__qualname__)}"
        )
        return write_yaml(values)


def _as_numbers(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class Beyond(Fields):
    """What to measure of a network beyond its answers to clean images."""

    what = "the evaluation"

    corruptions: bool = Field(default=False, description="noise, blur, contrast, ... in five severities")
    pgd: Annotated[tuple[float, ...], BeforeValidator(_as_numbers)] = Field(
        default=(), description="radii of an attack, shares of the pixels' range, for instance 0.01,0.03"
    )
    ood: str | None = Field(default=None, min_length=1, description="another data set, to be told from the own one")
    samples: int | None = Field(
        default=None, ge=1, description="judge corruptions and attack on so many samples, spread over the part"
    )

    @field_validator("pgd")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < radius <= 1 for radius in value):
            raise ValueError("radii are shares of the pixels' range, above 0 and at most 1")
        return tuple(sorted(set(value)))


DEFAULT_METHOD: Mapping[str, str] = MappingProxyType({"train": "plain", "distill": "hinton"})
"""What each verb of the command line does unless told otherwise."""


def read_config(path: Path) -> dict[str, Any]:
    """The fields in a TOML or YAML file, as they stand there.

    Raises:
        TutelageError: when it cannot be read, is neither (see ``parsing``), or holds no table of fields.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(f"cannot read the configuration {path}: {one_line(error)}") from error
    try:
        fields = parse_toml(text) if path.suffix == ".toml" else parse_yaml(text)
    except ValueError as error:
        raise TutelageError(f"{path} is not a readable {path.suffix or 'YAML'} file: {error}") from error
    if not isinstance(fields, dict):
        raise TutelageError(f"{path} holds no fields; write one a line, for instance 'data: digits'")
    return {str(name): value for name, value in fields.items()}
