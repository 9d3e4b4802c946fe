"""Calibrated probabilities and prediction sets of a classifier, from its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from tutelage.fields import Fields
from tutelage.models.outputs import at_least_float32

Sets = Literal["lac", "aps"]


def lac_scores(logits: Tensor) -> Tensor:
    """``-log p_k`` of every class: (N, K) to (N, K), nats.

    A bound on it is a bound on 1 - p_k, the score of "least ambiguous set-valued classifiers" (Sadinle, Lei, Wasserman
    2019), and has a better resolution for improbable classes.
    """
    return -at_least_float32(logits).log_softmax(1)


def aps_scores(logits: Tensor) -> Tensor:
    """The probability of a class and of all more probable ones: (N, K) to (N, K), in (0, 1].

    The score of "adaptive prediction sets" (Romano, Sesia, Candes 2020) without its random part, so that sets depend on
    the image alone; they are a little larger than those of the paper.
    """
    ordered, classes = at_least_float32(logits).softmax(1).topk(logits.shape[1], dim=1)  # ONNX has no stable sort
    return torch.zeros_like(ordered).scatter(1, classes, ordered.cumsum(1))


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"lac": lac_scores, "aps": aps_scores})
"""The score of each kind of set: a class is in the set if its score is at most the threshold."""


class Calibration(Fields):
    """A temperature and the threshold of prediction sets, as the weights file and the ONNX metadata record them.

    The set of a sample contains its true class with probability ``coverage`` at least, on data from the distribution of
    the held-out samples (``evaluation.calibration``). The threshold is for the network's own probabilities, since those
    of the temperature depend on the same held-out samples.
    """

    noun: ClassVar[str] = "the calibration"
    model_config = ConfigDict(extra="ignore", strict=True)

    temperature: Annotated[float, Field(gt=0)]
    coverage: Annotated[float, Field(gt=0, lt=1)]
    sets: Sets
    threshold: Annotated[float, Field(ge=0)]
    samples: Annotated[int, Field(gt=0)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """``softmax(logits / temperature)``: (N, K) to (N, K), at least float32."""
        return (at_least_float32(logits) / self.temperature).softmax(1)

    def in_set(self, logits: Tensor) -> Tensor:
        """Whether each class is in the prediction set: (N, K) to (N, K) bool. The most probable class always is."""
        best = torch.arange(logits.shape[1], device=logits.device) == logits.argmax(1, keepdim=True)
        return (SCORES[self.sets](logits) <= self.threshold) | best
