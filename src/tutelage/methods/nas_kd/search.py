"""The search: weights on one half of the training split, the choice of operations on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tutelage.config import Recipe
from tutelage.data.split import Split
from tutelage.data.stratified import stratified_split
from tutelage.methods.nas_kd.candidates import CANDIDATES, SKIP
from tutelage.methods.nas_kd.networks.cells import Cells, digits_of
from tutelage.training.loop import Record
from tutelage.training.optim import make_optimizer
from tutelage.training.updates import Alternating, Step

HALF = "architecture half"  # the stream of its batches
CHOICES = ("alpha", "kappa")  # the parameters of the choice


def is_choice(name: str) -> bool:
    """Whether a parameter of a search network is one of the choice, and not a weight."""
    return name in CHOICES


class Search:
    """The update rule of the search, and what happens after each epoch.

    In each step the weights are updated on a batch of their half, then the choice on a batch of the other half
    (``Alternating``; the learner of the choice is the first). After each epoch the temperature of the Gumbel-softmax is
    decay^epochs.

    Args:
        network: the search network.
        decay: of the temperature.
        skip_limit: the search ends once the mean probability of a skip exceeds this.

    Attributes:
        history: of each epoch, its number, the most probable cell and number of cells, how many of the nine edges have
            each operation, and the mean probability of a skip.
    """

    def __init__(self, network: Cells, decay: float, skip_limit: float) -> None:
        self.network, self.decay, self.skip_limit = network, decay, skip_limit
        self.rule = Alternating(1, HALF)
        self.history: list[dict[str, Any]] = []

    def __call__(self, step: Step) -> None:
        """Do the step."""
        self.rule(step)

    @torch.no_grad()
    def after_epoch(self, records: Sequence[Record]) -> bool:
        """Record the choice, lower the temperature, and return whether skips dominate."""
        if len(self.history) < len(records):
            cell, depth = self.network.most_probable()
            names = Counter(CANDIDATES[int(number or 0)].name for number in digits_of(cell))
            skip = float(self.network.alpha.softmax(1)[:, SKIP].mean())
            entry = {"epoch": len(records), "cell": cell, "cells": depth, "operations": dict(names), "skip": skip}
            self.history.append(entry)
        self.network.temperature.fill_(self.decay ** len(records))
        return bool(self.history[-1]["skip"] > self.skip_limit)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = [dict(entry) for entry in state["history"]]


def halves(split: Split, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of the halves for weights and for the choice: disjoint, stratified by class, sorted."""
    weights, choice = stratified_split(split.targets.strata(split.labels), len(split) // 2, seed)
    return torch.from_numpy(weights), torch.from_numpy(choice)


def optimizer_for(
    network: Cells, recipe: Recipe, rate: float, decay: float
) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """A factory: Adam with this rate and weight decay for the choice, the recipe's optimizer for the weights."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        choice = [getattr(network, name) for name in CHOICES]  # not before: a network on its way to a device has others
        if any(parameter is entry for parameter in parameters for entry in choice):
            return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), weight_decay=decay)
        return make_optimizer(recipe, parameters)

    return make
