"""Predicted classes as the lines of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models.calibration import Calibration


@dataclass(frozen=True)
class ClassProbabilities:
    """The probabilities of classes.

    Attributes:
        classes: the K class names; numbers if there are none.
        probabilities: (N, K) float32, the softmax of the logits, calibrated if there is a calibration.
        in_set: (N, K) bool, whether a class is in the prediction set; ``None`` without a calibration.
    """

    classes: tuple[str, ...]
    probabilities: Tensor
    in_set: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, classes: Sequence[str], calibration: Calibration | None) -> ClassProbabilities:
        """From logits (N, K).

        Raises:
            TutelageError: the logits have another shape.
        """
        if logits.ndim != 2:
            raise TutelageError(
                f"the network returns logits {tuple(logits.shape)}; predict needs one row (classes) for each sample"
            )
        names = tuple(classes) or tuple(str(number) for number in range(logits.shape[1]))
        if calibration is None:
            return cls(names, logits.softmax(1).cpu())
        return cls(names, calibration.probabilities(logits).cpu(), calibration.in_set(logits).cpu())

    def rows(self, top: int) -> Iterator[dict[str, Any]]:
        """The ``top`` most probable classes of each sample with their probabilities, best first.

        With a calibration also ``set``, the classes of the prediction set, the most probable one first.
        """
        values, numbers = self.probabilities.topk(min(top, len(self.classes)), dim=1)
        for row, (shares, columns) in enumerate(zip(values.tolist(), numbers.tolist(), strict=True)):
            best = {"class": self.classes[columns[0]], "probability": shares[0]}
            others = enumerate(zip(columns[1:], shares[1:], strict=True), 2)
            ranked = {
                name: value
                for rank, (column, share) in others
                for name, value in ((f"class_{rank}", self.classes[column]), (f"probability_{rank}", share))
            }
            yield best | ranked | ({} if self.in_set is None else {"set": self._set(row, self.in_set)})

    def _set(self, row: int, in_set: Tensor) -> list[str]:
        ranking = self.probabilities[row].argsort(descending=True).tolist()
        return [self.classes[column] for column in ranking if in_set[row, column]]


def row_text(row: Mapping[str, Any]) -> str:
    """A row with the name of its sample first as text: classes with probabilities in percent, the set in braces."""
    name, *values = (value for key, value in row.items() if key != "set")
    pairs = zip(values[::2], values[1::2], strict=True)
    text = f"{name}  " + "  ".join(f"{label} {100 * share:.1f} %" for label, share in pairs)
    return f"{text}  {{{', '.join(row['set'])}}}" if "set" in row else text
