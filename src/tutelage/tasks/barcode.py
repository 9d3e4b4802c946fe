"""The barcode task: strings with a check digit, read with abstention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.formats.ean13 import EAN13
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.smart_inference import Reading, most_probable, read
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.strings import Strings

CANDIDATES = (0, 1, 2, 3, 4, 6)
DEFAULT_CANDIDATES = 2  # gives most of the gain, with few false reads


class Barcode(Strings):
    """EAN-13 barcodes: strings decoded by the largest logits, and by smart inference, which may abstain.

    ``string_accuracy`` uses the largest logits. Smart inference corrects the K least certain digits by the checksum.
    The shares of right, false and no reads add up to 1.
    """

    decision_rule: ClassVar[str] = (
        "tutelage.evaluation.smart_inference.read(logits, EAN13, candidates=2) corrects uncertain digits by the check "
        "digit, or reads nothing"
    )
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            **Strings.metrics,
            "read_accuracy": Metric("strings read rightly by smart inference with K = 2", "higher", percent=True),
            "false_reads": Metric("strings read falsely by smart inference with K = 2", "lower", percent=True),
            "checked_false_reads": Metric("false strings that the checksum holds for", "lower", percent=True),
            "most_probable_accuracy": Metric("accuracy of the most probable valid string", "higher", percent=True),
            "smart_inference": Curve("right, false and no reads by the number of digits open to correction"),
        }
    )

    def decision_metrics(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """Metrics of smart inference for each K, and of the most probable valid string."""
        by_candidates = {k: outcomes(read(logits, EAN13, k), labels) for k in CANDIDATES}
        default = by_candidates[DEFAULT_CANDIDATES]
        return {
            "read_accuracy": default["right"],
            "false_reads": default["false"],
            "checked_false_reads": by_candidates[0]["false"],
            "most_probable_accuracy": outcomes(most_probable(logits, EAN13), labels)["right"],
            "smart_inference": {
                "candidates": list(CANDIDATES),
                **{name: [shares[name] for shares in by_candidates.values()] for name in default},
            },
        }

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The string of smart inference, empty if it reads nothing, and the probability of the symbols."""
        reading = read(request.logits(), EAN13, DEFAULT_CANDIDATES)
        parts = (reading.symbols.tolist(), reading.accepted.tolist(), reading.log_prob.exp().tolist())
        for numbers, accepted, probability in zip(*parts, strict=True):
            text = "".join(request.classes[number] for number in numbers)
            yield Prediction([{"string": text if accepted else "", "probability": probability}])


def outcomes(reading: Reading, labels: Tensor) -> dict[str, float | None]:
    """The shares of strings (N, L) read rightly, falsely and not at all; ``None`` if no label is known."""
    known = (labels != UNLABELLED).any(1)
    equal = ((reading.symbols == labels) | (labels == UNLABELLED)).all(1)
    shares = {
        "right": reading.accepted & equal,
        "false": reading.accepted & ~equal,
        "none": ~reading.accepted,
    }
    return {name: json_number(which[known].double().mean()) for name, which in shares.items()}


task = Barcode()
