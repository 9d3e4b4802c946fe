"""Frozen configurations: the hardware, everything that a run depends on, and the extra evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.errors import TutelageError, one_line
from tutelage.fields import Fields
from tutelage.files import read_file
from tutelage.formats import names
from tutelage.parsing import parse_json, parse_toml, parse_yaml, write_yaml
from tutelage.recipe import Numbers, Recipe, as_numbers

__all__ = [
    "DEFAULT_METHOD",
    "FLAG",
    "OBJECT_PREFIX",
    "Compile",
    "CompileWhen",
    "Config",
    "Deviations",
    "ExtraEvaluation",
    "Hardware",
    "MethodName",
    "Normalization",
    "Numbers",
    "Recipe",
    "method_name",
    "read_config",
]

Deviations = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_numbers)]


def _as_texts(value: Any) -> Any:
    """Convert a sequence of texts, or a comma-separated text, to a tuple without empty texts."""
    stripped = (part.strip() if isinstance(part, str) else part for part in as_numbers(value))
    return tuple(part for part in stripped if part != "")


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class Normalization(Fields):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    noun: ClassVar[str] = "the normalization"

    mean: Numbers = Field(default=(), description="mean of each channel")
    std: Deviations = Field(default=(), description="standard deviation of each channel")

    @model_validator(mode="after")
    def _both(self) -> Normalization:
        if bool(self.mean) != bool(self.std):
            raise TutelageError("a mean and a standard deviation go together; give both (mean and std), or neither")
        return self

    @property
    def pair(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation; ``None`` if neither is given."""
        return (self.mean, self.std) if self.mean else None


CompileWhen = Literal["auto", "reduce-overhead", "max-autotune"]
Compile = bool | CompileWhen


class Hardware(Fields):
    """Device, precision and compilation. ``auto`` and ``None`` are resolved for the device, and recorded."""

    device: str = Field(default="auto", description="device: auto, cpu, cuda, cuda:1 or mps")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="float32, bfloat16 (autocast), float16 (autocast with scaled losses, for GPUs without bfloat16) or "
        "auto: bfloat16 if the hardware supports it",
    )
    channels_last: bool | None = Field(
        default=None, description="channels-last memory format; on by default on CPUs and GPUs"
    )
    compile: Compile = Field(
        default=False,
        description="use torch.compile: true, false, auto (only if the run is long enough to benefit), or a mode with "
        "CUDA graphs: reduce-overhead, max-autotune",
    )
    workers: int = Field(default=2, ge=0, description="worker processes that read image files")

    @field_validator("compile", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        modes = ("true", "false", *get_args(CompileWhen))
        if isinstance(value, str) and value not in modes:
            raise ValueError(f"must be {', '.join(modes[:-1])} or {modes[-1]}")
        return value


AugmentName = Literal["crop", "standard", "strong"]
_AUGMENT_FLAGS: Mapping[str, bool] = MappingProxyType({"none": False, "false": False, "default": True, "true": True})


def _known_augment(value: Any) -> Any:
    value = _AUGMENT_FLAGS.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool) and not (isinstance(value, str) and value in get_args(AugmentName)):
        raise ValueError("must be none, crop, standard or strong")
    return value


Augment = Annotated[bool | AugmentName, BeforeValidator(_known_augment)]
"""Files of runs have ``true`` for the data set's own augmentation and ``false`` for none."""


FLAG: tuple[Any, ...] = (bool, bool | None)
"""Types of fields that are flags on the command line: --NAME or --no-NAME."""


OBJECT_PREFIX = "given:"
"""Prefix of the text that stands for a Python object in a configuration."""


def method_name(value: Any) -> Any:
    """The name of a method that is an object; other values unchanged."""
    if callable(value) and not hasattr(value, "spec"):
        raise ValueError("a method is a name, FILE.py:NAME, module:NAME or a function decorated with @method(...)")
    return getattr(value, "spec", value)


MethodName = Annotated[str, BeforeValidator(method_name)]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _number_as_text(value: Any) -> Any:
    """Convert a number to text: ``noise=0.4``."""
    return value if isinstance(value, bool) or not isinstance(value, Real) else str(value)


class Config(Recipe, Hardware):
    """Everything that a run depends on. It is saved in the run's folder; running it again gives the same results."""

    saved: ClassVar[bool] = True

    data: str = Field(default="digits", description=f"data set: {names()}")
    image_size: int | None = Field(default=None, ge=4, description="resize image files to this many pixels per side")
    test: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="fraction of the samples for testing, if there is no test split; default 0.2",
    )
    skip_bad: bool = Field(default=False, description="leave out image files that cannot be decoded")
    per_class: int | None = Field(default=None, ge=1, description="use only this many training samples per class")
    imbalance: str | None = Field(
        default=None, description="class imbalance: powerlaw:GAMMA[:MAX:MIN], longtail:FACTOR or step:SHARE:FACTOR"
    )
    noise: Annotated[str | None, BeforeValidator(_number_as_text)] = Field(
        default=None,
        description="label noise: RATE (symmetric), uniform:RATE, pair:RATE, instance:RATE (instance-dependent noise), "
        "asymmetric:RATE (CIFAR), flip:RATE:CLASS:CLASS, "
        "confusion:RATE:FILE, features:RATE:FILE, outside:RATE:DATA (out-of-distribution images), matrix:FILE "
        "(transition matrix), human:FILE:COLUMN (human annotations), imprecise:FILE:RATE (groups of classes); missing "
        "labels: missing:RATE; verified labels: trusted:NUMBER per class; combined with +: 0.4+missing:0.5",
    )
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="fraction of the training set held out for model selection"
    )
    augment: Augment = Field(
        default=True,
        description="augmentation: true (the data set's own, for images crop), none, crop (shifts by up to an eighth "
        "of the height, and flips of coloured images), standard (random resized crops and flips, for photographs; "
        "evaluation then sees the middle 7/8 of the shorter side) or strong (standard, RandAugment, random erasing)",
    )
    views: int | None = Field(default=None, ge=1, description="use only this many fixed views (crops, ...) per image")
    cache: str | None = Field(
        default=None, description="folder in which decoded image files are cached, for this and later runs"
    )
    student: str = Field(
        default="resnet8",
        description="network to train: resnet8, wrn-16-2, mobilenetv2, module:attr, timm/NAME or hf/NAME",
    )
    pretrained: bool = Field(default=False, description="initialize a timm or hf student with its published weights")
    init: str | None = Field(
        default=None,
        min_length=1,
        description="initialize the student with trained weights of the same network: a run's folder or MODEL@WEIGHTS; "
        "a classifier for another number of classes is not loaded",
    )
    teacher: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        default=(),
        description="trained network to learn from: a run's folder, MODEL@WEIGHTS, timm/NAME or hf/NAME; the "
        "probabilities of several are averaged",
    )
    teacher_mean: Numbers = Field(
        default=(),
        description="normalization of the teacher's images if its weights record none: mean of each channel, for "
        "pixels in [0, 1], such as 0.485,0.456,0.406",
    )
    teacher_std: Deviations = Field(
        default=(), description="with teacher_mean: standard deviation of each channel, such as 0.229,0.224,0.225"
    )
    teacher_size: int | None = Field(
        default=None,
        ge=4,
        le=4096,
        description="resize the teacher's images to this many pixels per side; by default to the size that its weights "
        "record, if they record one",
    )
    teacher_cache: str | None = Field(
        default=None, description="folder in which teacher outputs are cached, for this and later runs"
    )
    teacher_cache_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="precision of cached teacher outputs; float32 is lossless"
    )
    method: MethodName = Field(
        default="plain", description="training method: tutelage methods lists them; FILE.py:NAME or module:NAME"
    )
    settings: dict[str, Any] = Field(default={}, description="parameters of the method")
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="random seed of initial weights, batches and label noise"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if bool(self.teacher_mean) != bool(self.teacher_std):
            raise TutelageError("teacher_mean and teacher_std go together; give both, or neither")
        if self.teacher_cache and (self.mixup is not None or self.cutmix is not None):
            raise TutelageError(
                "teacher_cache has no entries for the mixed images of mixup and cutmix, each of which is new; leave "
                "teacher_cache out"
            )
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Config:
        if self.init is not None and self.pretrained:
            raise TutelageError("init and pretrained both give initial weights; leave one out")
        return self

    @property
    def reads_whole_images(self) -> bool:
        """Whether image files are read as random boxes of whole images."""
        return self.augment in ("standard", "strong")

    def recipe(self) -> Recipe:
        """The fields of the training recipe."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})

    def hardware(self) -> Hardware:
        """The fields of the hardware."""
        return Hardware(**{name: getattr(self, name) for name in Hardware.model_fields})

    def as_yaml(self) -> str:
        """The configuration as YAML text that ``read_config`` reads."""
        values = self.model_dump(
            mode="json",
            fallback=lambda value: f"{OBJECT_PREFIX}{getattr(value, '__qualname__', type(value).__qualname__)}",
        )
        return write_yaml(values)


class ExtraEvaluation(Fields):
    """What to evaluate besides predictions on clean images."""

    noun = "the evaluation"

    corruptions: bool = Field(
        default=False, description="evaluate on corrupted images: noise, blur, contrast, ... at five severities"
    )
    pgd: Numbers = Field(
        default=(), description="evaluate under PGD attacks of these radii, as shares of the pixel range: 0.01,0.03"
    )
    attacks: Texts = Field(
        default=(),
        description="evaluate under these attacks and the worst of them: pgd:0.03,square:0.03,den; NAME:RADIUS, with "
        "the radius as a share of the pixel range, or NAME, for the nearest adversarial image",
    )
    ood: str | None = Field(default=None, min_length=1, description="out-of-distribution data set to detect")
    samples: int | None = Field(
        default=None, ge=1, description="evaluate corruptions and attacks on this many samples, spread over the part"
    )

    @field_validator("pgd")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < radius <= 1 for radius in value):
            raise ValueError("radii are shares of the pixels' range, above 0 and at most 1")
        return tuple(sorted(set(value)))


DEFAULT_METHOD: Mapping[str, str] = MappingProxyType({"train": "plain", "distill": "hinton"})
"""The default method of each training command."""


_PARSERS: Mapping[str, Callable[[str], Any]] = MappingProxyType({".toml": parse_toml, ".json": parse_json})


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a TOML, JSON or YAML file, without validation.

    Raises:
        TutelageError: the file cannot be read, cannot be parsed (see ``parsing``), or contains no table of fields.
    """
    path = Path(os.path.expanduser(path))
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise TutelageError(
            f"cannot read the configuration {path}: {reason}; name a TOML or YAML file, such as config.yaml of a run"
        ) from error
    try:
        fields = _PARSERS.get(path.suffix, parse_yaml)(text)
    except ValueError as error:
        raise TutelageError(f"{path} is not a readable {path.suffix or 'YAML'} file: {error}") from error
    if not isinstance(fields, dict):
        raise TutelageError(f"{path} contains no fields; write one per line, for example 'data: digits'")
    return {str(name): value for name, value in fields.items()}
