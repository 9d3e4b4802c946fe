"""The update rule of the structure phase, and the control of the weights of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tutelage.methods.compact_cnn.shrinkage import ResourceLoss
from tutelage.training.loop import Record
from tutelage.training.updates import Step, together


class Shrinkage:
    """The rule ``together``, then the proximal step; and the control of lambda_b after each epoch.

    Args:
        loss: a term of the only learner.
        rate: eta.
        tolerance: training may end when the cost is at most (1 + tolerance) x the target.
        parts: the number of parts of a batch whose gradients are accumulated; each is one call of the rule.

    Attributes:
        history: of each epoch, the number, the cost, those of the blocks, and lambda_b in this epoch.
    """

    def __init__(self, loss: ResourceLoss, rate: float, tolerance: float, parts: int = 1) -> None:
        self.loss, self.rate, self.tolerance, self.parts = loss, rate, tolerance, parts
        self.history: list[dict[str, Any]] = []

    def __call__(self, step: Step) -> None:
        """Do the step."""
        together(step)
        (learner,) = step.learners
        self.loss.shrink(step.lr[learner] / self.parts, step.number)

    def after_epoch(self, records: Sequence[Record]) -> bool:
        """Record the cost, and return whether the target is reached; if not, change the weights of the blocks.

            lambda_b <- lambda_b exp(eta (cost_b / target_b - 1))

        with the cost and target of the block, or those of the network for all blocks alike.
        """
        loss, resources = self.loss, self.loss.resources
        counts = loss.counts()
        by_block = resources.by_block(counts)
        total = resources.constant + sum(by_block)
        self.history.append(
            {"epoch": len(records), "cost": total, "blocks": by_block, "weights": loss.weights.tolist()}
        )
        pairs = [*zip(by_block, loss.block_targets, strict=True)] if loss.block_targets else [(total, loss.target)]
        if all(cost <= (1 + self.tolerance) * target for cost, target in pairs):
            return True
        factors = torch.tensor([math.exp(self.rate * (cost / target - 1)) for cost, target in pairs])
        loss.weights.mul_(factors.to(loss.weights))
        return False

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = [dict(entry) for entry in state["history"]]
