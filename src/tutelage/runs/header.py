"""The metadata in a weights file's header, checked as it is read."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from tutelage.errors import TutelageError, one_line
from tutelage.fields import Fields
from tutelage.files import read_file
from tutelage.models.calibration import Calibration
from tutelage.models.external.common import MeanStd
from tutelage.models.weights import read_metadata
from tutelage.runs.folder import RESULT, SAMPLES, WEIGHTS, RunFolder

WEIGHTS_DIGEST, SAMPLES_DIGEST, CALIBRATED_DIGEST = "student_sha256", "samples_sha256", "calibrated_sha256"
"""Keys of ``result.json``: the SHA-256 of the student's weights file, of the results for each sample, and of the
weights file with a calibration in its header."""

_MAX_INPUT = 2**28  # values, 1 GiB: the network is run on such an input when it is opened
_MAX_VALUE = 1e30  # float32 represents it and its inverse


class Header(Fields):
    """Metadata of weights. Empty fields are unknown; other keys of a file are ignored."""

    noun = "the header"
    model_config = ConfigDict(extra="ignore", strict=True, validate_default=False)

    task: str = ""
    model: str = ""
    classes: list[str] = Field(default=[], min_length=1)
    image_shape: list[Annotated[int, Field(gt=0)]] = Field(default=[], min_length=3, max_length=3)
    input_shape: list[Annotated[int, Field(gt=0)]] = Field(default=[], min_length=1)
    encoding: str = ""
    mean: list[float] = Field(default=[], min_length=1)
    std: list[float] = Field(default=[], min_length=1)
    surgery: list[dict[str, Any]] = Field(default=[])
    calibration: Calibration | None = None

    @field_validator("surgery", mode="before")
    @classmethod
    def _operations(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError("expected a list of operations")
        return value

    @field_validator("image_shape", "input_shape")
    @classmethod
    def _sized(cls, value: list[int]) -> list[int]:
        if math.prod(value) > _MAX_INPUT:
            raise ValueError(f"one input has at most {_MAX_INPUT:,} values")
        return value

    @field_validator("mean")
    @classmethod
    def _limited(cls, value: list[float]) -> list[float]:
        if any(abs(entry) > _MAX_VALUE for entry in value):
            raise ValueError(f"means are at most {_MAX_VALUE:g} in magnitude")
        return value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        if any(not 1 / _MAX_VALUE < entry < _MAX_VALUE for entry in value):
            raise ValueError("standard deviations are above 0")
        return value

    @model_validator(mode="after")
    def _same_lengths(self) -> Header:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std {len(self.std)}")
        if self.image_shape and len(self.mean) not in (0, 1, self.image_shape[0]):
            raise ValueError(f"mean has {len(self.mean)} entries for images of {self.image_shape[0]} channels")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; empty if the header records none."""
        return tuple(self.image_shape or self.input_shape)

    def mean_std(self, channels: int) -> MeanStd | None:
        """The normalisation for images with this number of channels; ``None`` if the header records none.

        Raises:
            TutelageError: the recorded normalisation is for another number of channels.
        """
        if len(self.mean) not in (0, 1, channels):
            raise TutelageError(
                f"the weights normalise images of {len(self.mean)} channels and the data has {channels}; "
                "use other weights, or convert the images"
            )
        return (tuple(self.mean), tuple(self.std)) if self.mean else None


def read_header(file: Path) -> Header:
    """Read the header of a weights file; empty for files that other programs wrote.

    Raises:
        TutelageError: the file is damaged, is not the one that the run in its folder wrote, or a field of its header
            has a wrong type.
    """
    metadata = read_metadata(file)
    check_digest(file)
    try:
        return Header(**metadata)
    except TutelageError as error:
        raise TutelageError(f"{file}: {error}; save the weights again") from None


def check_digest(file: Path) -> None:
    """Compare a file of a run with the digest that the run recorded. Runs of older versions have none.

    Raises:
        TutelageError: they differ, or the file cannot be read.
    """
    folder = RunFolder(file.parent)
    digests = {WEIGHTS: (WEIGHTS_DIGEST, CALIBRATED_DIGEST), SAMPLES: (SAMPLES_DIGEST,)}
    if file.name not in digests or not (file.parent / RESULT).is_file():
        return
    result = folder.result() or {}
    recorded = [result[key] for key in digests[file.name] if key in result]
    try:
        actual = hashlib.sha256(read_file(file, largest=None)).hexdigest()
    except OSError as error:
        raise TutelageError(f"cannot read {str(file)!r}: {one_line(error)}; check the path") from error
    if recorded and actual not in recorded:
        raise TutelageError(
            f"{file} is damaged or was replaced: its SHA-256 is {actual[:16]}... and {RESULT} beside it says "
            f"{str(recorded[-1])[:16]}...; copy the folder again, or remove {RESULT} to finish the run from its "
            "checkpoint"
        )
