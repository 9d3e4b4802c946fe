"""Criteria of attacks: when an attacked input counts as adversarial, and what an attack maximises to get there."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.fields import Fields

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C) and labels (B,) to a value per sample (B,), which an attack maximises."""

EASY = 0.5  # a target with a smaller probability must also become the most probable class


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest wrong logit minus the label's, (B,): above 0 for misclassified samples.

    As the loss of an attack, its gradients do not vanish, unlike those of a saturated softmax.
    """
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


class Criterion(Fields):
    """When an attack has succeeded. All functions take logits (B, C) and labels (B,) int64, and return (B,).

    ``labels`` are the true classes, or the target classes if ``targeted``.
    """

    noun: ClassVar[str] = "the criterion"
    targeted: ClassVar[bool] = False

    def success(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether the attack has succeeded, bool: a positive margin, or a margin of 0 that argmax resolves."""
        reached = self.margin(logits, labels)
        is_label = logits.argmax(1) == labels
        return (reached > 0) | ((reached == 0) & (is_label if self.targeted else ~is_label))

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By how much the attack has succeeded, in logits: below 0 if it has not."""
        raise NotImplementedError(f"{type(self).__name__} must define margin()")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy to maximise: that of the label, or minus that of the target."""
        value = F.cross_entropy(logits, labels, reduction="none")
        return -value if self.targeted else value

    def shortfall(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What is missing, in the unit of ``outputs`` (probabilities or logits): 0 once the attack has succeeded."""
        raise NotImplementedError(f"{type(self).__name__} must define shortfall()")

    def check(self, classes: int) -> None:
        """Refuse a number of classes for which the criterion has no meaning.

        Raises:
            TutelageError: with the number.
        """
        if classes < 2:
            raise TutelageError(f"an attack needs a network with two classes or more, and this one has {classes}")


class Misclassified(Criterion):
    """The label is not among the ``top`` most probable classes.

    margin = z_(top) - z_y - confidence, with z_(n) the n-th largest logit of the other classes;
    shortfall = the sum of max(0, o_y - o_i) over the ``top`` most probable other classes i (the objective of DEN).
    """

    top: int = Field(default=1, ge=1, description="the number of classes among which the label must not be")
    confidence: float = Field(default=0.0, ge=0, description="the least margin, in logits, that counts as success")

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """z_(top) - z_y - confidence, (B,)."""
        if self.top == 1:
            return margin(logits, labels) - self.confidence
        return self._others(logits, labels)[:, -1] - logits.gather(1, labels[:, None]).squeeze(1) - self.confidence

    def shortfall(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of max(0, o_y - o_i) over the ``top`` most probable other classes, (B,)."""
        return (outputs.gather(1, labels[:, None]) - self._others(outputs, labels)).clamp(min=0).sum(1)

    def _others(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The ``top`` largest outputs of the other classes, descending, (B, top)."""
        return outputs.scatter(1, labels[:, None], float("-inf")).topk(self.top, dim=1).values

    def check(self, classes: int) -> None:
        """Refuse a ``top`` that leaves no class outside."""
        super().check(classes)
        if self.top >= classes:
            raise TutelageError(f"top must be below the number of classes, {classes}, got {self.top}")


class Accepted(Criterion):
    """The most probable class is neither the label nor the last one, which stands for rejected inputs.

    For networks that can reject an input: an adversarial input must be accepted.

    margin = max of the classes that are neither - max(z_y, z_rejected) - confidence; shortfall = max(0, -margin).
    """

    confidence: float = Field(default=0.0, ge=0, description="the least margin, in logits, that counts as success")

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By how much another class exceeds both, (B,)."""
        others = logits[:, :-1].scatter(1, labels[:, None], float("-inf")).amax(1)
        largest = torch.maximum(logits.gather(1, labels[:, None]).squeeze(1), logits[:, -1])
        return others - largest - self.confidence

    def success(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether the margin is above 0; a tie with the label or the last class is no success."""
        return self.margin(logits, labels) > 0

    def shortfall(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What the largest other class lacks, (B,)."""
        return (-self.margin(outputs, labels)).clamp(min=0)

    def check(self, classes: int) -> None:
        """Refuse networks without a wrong class that is accepted."""
        super().check(classes - 1)


class Targeted(Criterion):
    """The target class is the most probable one, with a least margin and probability; ``labels`` are the targets.

    margin = min(z_t - max of the others - confidence, log p_t - log probability)

    shortfall = max(0, probability - o_t), plus, if probability < 0.5, max(0, max of the others - o_t), in which no
    gradient reaches the others (the objective of DEN).
    """

    targeted: ClassVar[bool] = True

    confidence: float = Field(default=0.0, ge=0, description="the least margin, in logits, that counts as success")
    probability: float = Field(default=0.0, ge=0, lt=1, description="the probability that the target must exceed")

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The smaller of both margins, (B,)."""
        ahead = -margin(logits, labels) - self.confidence
        if not self.probability:
            return ahead
        log_probability = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        return torch.minimum(ahead, log_probability - torch.tensor(self.probability).log().to(logits))

    def shortfall(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What the target's output lacks to the probability, and to the largest other output, (B,)."""
        target = outputs.gather(1, labels[:, None]).squeeze(1)
        missing = (self.probability - target).clamp(min=0) if self.probability else torch.zeros_like(target)
        if self.probability < EASY:
            others = outputs.detach().scatter(1, labels[:, None], float("-inf")).amax(1)
            missing = missing + (others - target).clamp(min=0)
        return missing
