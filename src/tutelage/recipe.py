"""The training recipe: optimizer, schedule, batches and labels, and the presets that set several of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.errors import TutelageError, unknown
from tutelage.fields import Fields


def as_numbers(value: Any) -> Any:
    """Convert one number, a sequence of numbers, or a comma-separated text to a tuple."""
    entries = value if isinstance(value, list | tuple) else (value,)
    return tuple(part for entry in entries for part in (entry.split(",") if isinstance(entry, str) else (entry,)))


def _as_class_weights(value: Any) -> Any:
    return value if value is None or value == "balanced" else as_numbers(value)


Numbers = Annotated[tuple[float, ...], BeforeValidator(as_numbers)]


Weight = Annotated[float, Field(ge=0)]
ClassWeights = Annotated[tuple[Weight, ...] | Literal["balanced"] | None, BeforeValidator(_as_class_weights)]


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "adamw": MappingProxyType(
            {
                "optimizer": "AdamW",
                "lr": 5e-4,
                "weight_decay": 0.05,
                "decay_norms": False,
                "schedule": "cosine",
                "warmup": 1.0,
                "clip": 1.0,
            }
        ),
        "fast": MappingProxyType(
            {
                "lr": 0.2,
                "schedule": "one-cycle",
                "ema": 0.99,
            }
        ),
    }
)
"""Presets by name: the values of the fields that are not given.

``adamw`` is usual for transformers. ``fast`` is for convolutional networks and runs of a few epochs, with the parts
that gained in ``experiments/fast.py``.
"""


class Recipe(Fields):
    """The optimizer and its schedule. The defaults are those usual for CIFAR networks, scaled to batch size 64.

    With the optimizer AdamW and no learning rate, the fields that are not given are those of the preset ``adamw``.
    """

    preset: str | None = Field(
        default=None, description=f"set the recipe's fields that are not given: {', '.join(PRESETS)}"
    )
    epochs: int = Field(default=20, ge=1, description="number of passes over the training set")
    batch_size: int = Field(default=64, ge=1, description="samples per step, over all processes")
    accumulate: int = Field(
        default=1, ge=1, description="number of parts of a batch that are passed one after another, to save memory"
    )
    optimizer: str | Callable[..., Any] = Field(
        default="SGD", description="optimizer, by its class name in torch.optim"
    )
    lr: float = Field(default=0.05, gt=0, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum, for optimizers that have it")
    nesterov: bool = Field(default=True, description="Nesterov momentum, for optimizers that have it")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay, except where the method sets another")
    decay_norms: bool = Field(
        default=True, description="weight decay also for biases and norms (all parameters of one axis)"
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="learning rate of each layer of the network relative to that of the next layer, such as 0.75",
    )
    schedule: Literal["step", "cosine", "one-cycle", "constant"] = Field(
        default="step", description="learning-rate schedule: step, cosine, one-cycle or constant"
    )
    milestones: Numbers = Field(
        default=(0.3, 0.6, 0.8), description="when schedule 'step' lowers the rate, as fractions of the run"
    )
    gamma: float = Field(default=0.2, gt=0, le=1, description="factor by which schedule 'step' lowers the rate")
    warmup: float = Field(default=0.0, ge=0, description="linear warm-up of the learning rate, in epochs")
    clip: float | None = Field(default=None, gt=0, description="clip the gradient norm to this value")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of a label that is spread over all classes, such as 0.1"
    )
    class_weights: ClassWeights = Field(
        default=None,
        description="weights of the classes in losses on labels: balanced, or a number for each class: 1,2,5",
    )
    class_balanced: bool = Field(default=False, description="as many samples of each class in each batch")
    mixup: float | None = Field(
        default=None,
        gt=0,
        description="mix-up: blend pairs of samples, with shares from Beta(ALPHA, ALPHA), such as 0.2",
    )
    cutmix: float | None = Field(
        default=None,
        gt=0,
        description="cut-mix: paste boxes of other images, with areas from Beta(ALPHA, ALPHA), such as 1",
    )
    ema: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="evaluate and save an average of the weights with this decay, such as 0.999",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, fields: Any) -> Any:
        """Replace the preset by its fields, so that a recorded recipe does not depend on this table."""
        fields = dict(fields)
        name, optimizer = fields.pop("preset", None), fields.get("optimizer")
        if name is None and isinstance(optimizer, str) and optimizer.lower() == "adamw" and "lr" not in fields:
            name = "adamw"
        if name is not None and name not in PRESETS:
            raise unknown("preset", str(name), PRESETS)
        return {**PRESETS[name], **fields} if name is not None else fields

    @model_validator(mode="after")
    def _one_warmup(self) -> Recipe:
        if self.schedule == "one-cycle" and self.warmup:
            raise TutelageError(
                f"warmup={self.warmup:g} and schedule=one-cycle both raise the learning rate at first; leave warmup out"
            )
        return self

    @field_validator("milestones")
    @classmethod
    def _ordered(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value) or any(not 0 < share < 1 for share in value):
            raise ValueError("milestones are increasing fractions of the run, each between 0 and 1")
        return value
