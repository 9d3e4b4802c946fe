"""The types of the fields that are read from the files of a study; the files may have other fields too."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from tutelage.runs.schema import Count, Recorded

Names = Annotated[list[str], Field(min_length=1)]
Numbers = list[float | None]


class VariantEntry(Recorded):
    """A method of ``study.json``."""

    noun: ClassVar[str] = "a method"
    method: str
    settings: dict[str, Any] = Field(default={})


class StudyFile(Recorded):
    """``study.json``."""

    noun: ClassVar[str] = "the study"
    name: str
    task: str | None = None
    data: Names
    noise: list[str | None]
    imbalance: list[str | None]
    per_class: list[int | None]
    teacher_labels: Names
    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    methods: dict[str, VariantEntry]
    seeds: list[int]
    train: dict[str, Any]
    evaluate: dict[str, Any]
    budget: Count


class Reliability(Recorded):
    """Confidence and accuracy per bin."""

    noun: ClassVar[str] = "reliability"
    count: list[Count]
    accuracy: Numbers
    confidence: Numbers

    @model_validator(mode="after")
    def _equal_lengths(self) -> Reliability:
        if len({len(self.count), len(self.accuracy), len(self.confidence)}) > 1:
            raise ValueError("the bins have different numbers of values")
        return self


class RiskCoverage(Recorded):
    """Risk by coverage."""

    noun: ClassVar[str] = "risk_coverage"
    coverage: Numbers
    risk: Numbers

    @model_validator(mode="after")
    def _equal_lengths(self) -> RiskCoverage:
        if len(self.coverage) != len(self.risk):
            raise ValueError("coverage and risk have different numbers of values")
        return self


class Curve(Recorded):
    """Training metrics by epoch."""

    noun: ClassVar[str] = "the curve"
    __pydantic_extra__: dict[str, Numbers]  # the main metric, as train_NAME and validation_NAME
    epoch: list[int]
    loss: dict[str, Numbers]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Curve:
        series = (*self.__pydantic_extra__.values(), *self.loss.values())
        if any(len(values) != len(self.epoch) for values in series):
            raise ValueError("the epochs and their numbers differ in length")
        return self


class RunRecord(Recorded):
    """A line of ``results.jsonl`` or ``trials.jsonl``."""

    noun: ClassVar[str] = "the record"
    data: str
    noise: str | None
    imbalance: str | None
    per_class: int | None
    teacher_labels: str
    error: str | None
    settings: dict[str, Any] | None
    command: str | None
    per_class_accuracy: dict[str, float | None] | None = None
    reliability: Reliability | None = None
    risk_coverage: RiskCoverage | None = None
    corruptions: dict[str, Numbers] | None
    pgd: dict[str, float | None] | None
    attacks: dict[str, float | None] | None = None
    attack_curves: dict[str, dict[str, float]] | None = None
    curve: Curve | None
    space: dict[str, str] = Field(default={})
    score: float | None = None

    @field_validator("pgd")
    @classmethod
    def _by_radius(cls, value: dict[str, float | None] | None) -> dict[str, float | None] | None:
        for radius in value or ():
            float(radius)
        return value

    @field_validator("attack_curves")
    @classmethod
    def _by_distance(cls, value: dict[str, dict[str, float]] | None) -> dict[str, dict[str, float]] | None:
        for curve in (value or {}).values():
            for radius in curve:
                float(radius)
        return value
