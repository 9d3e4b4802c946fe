"""Strings with a checksum read from uncertain symbols: "smart inference" (Do et al. 2020, arXiv 2004.06297)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.ean13 import Checksum
from tutelage.errors import TutelageError

MOST_CANDIDATES = 10  # 2^K strings are looked at


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read.

    Attributes:
        symbols: (N, L) int64; where nothing was accepted, the most probable symbols.
        accepted: (N,) bool. What is not accepted is "no read".
        log_prob: (N,) float32, the sum over places of the symbols' log-probabilities.
    """

    symbols: Tensor
    accepted: Tensor
    log_prob: Tensor


def read(logits: Tensor, checksum: Checksum, candidates: int) -> Reading:
    """Read strings, with the K least certain symbols open to correction by the checksum.

    The margin of a place is p(first) - p(second) of its softmax. At each subset of the K places of smallest margin the
    first choice is replaced by the second: 2^K strings. Of those that the checksum holds for, the one with the largest
    sum of log-probabilities is accepted; if there is none, nothing is. So a valid string of first choices is accepted
    as it is, whatever K, and K = 0 is the check of the checksum alone. The order of preference among several valid
    strings is inferred: the paper could not be read in full.

    Args:
        logits: (N, L, C), C at least 2.
        checksum: of strings of L symbols, numbered as the logits are.
        candidates: K, from 0 to 10.

    Raises:
        TutelageError: K is out of this range.
    """
    if not 0 <= candidates <= MOST_CANDIDATES:
        raise TutelageError(f"smart inference corrects 0 to {MOST_CANDIDATES} symbols, got {candidates}")
    log_probs = logits.float().log_softmax(2)
    places = logits.shape[1]
    best, symbols = log_probs.topk(2, dim=2)  # (N, L, 2)
    first, second = symbols.unbind(2)
    margin = best.exp() @ best.new_tensor([1.0, -1.0])
    open_places = margin.argsort(dim=1, stable=True)[:, : min(candidates, places)]  # (N, K)
    subsets = _subsets(open_places.shape[1]).to(logits.device)  # (2^K, K), the empty one first
    change = torch.tensor(checksum.weights, device=logits.device) * (second - first)
    cost = best[:, :, 0] - best[:, :, 1]
    pick = subsets.T.float()  # GPUs have no product of whole numbers; these are small, and exact as floats
    changes = (change.gather(1, open_places).float() @ pick).long() + checksum.residue(first)[:, None]
    costs = (cost.gather(1, open_places) @ pick).masked_fill(changes % checksum.modulus != 0, math.inf)
    least, choice = costs.min(1)
    choice = torch.where(costs[:, 0] == 0, 0, choice)  # of equals the first choices themselves
    swapped = torch.zeros_like(first).scatter(1, open_places, subsets[choice]).bool()
    accepted = least.isfinite()
    chosen = torch.where(swapped & accepted[:, None], second, first)
    log_prob = best[:, :, 0].sum(1) - torch.where(accepted, least, 0.0)
    return Reading(chosen, accepted, log_prob)


def most_probable(logits: Tensor, checksum: Checksum) -> Reading:
    """The valid string with the largest sum of log-probabilities among all C^L: a search without pruning.

    By dynamic programming over the places and the residue so far; every string is read as something.

    Args:
        logits: (N, L, C).
        checksum: of strings of L symbols; residues add up modulo ``checksum.modulus``.
    """
    log_probs = logits.float().log_softmax(2)
    samples, places, symbols = log_probs.shape
    residues = torch.arange(checksum.modulus, device=logits.device)
    score = log_probs.new_full((samples, checksum.modulus), -math.inf)
    score[:, 0] = 0
    chosen: list[Tensor] = []
    for place, weight in enumerate(checksum.weights):
        added = weight * torch.arange(symbols, device=logits.device) % checksum.modulus
        before = (residues[:, None] - added) % checksum.modulus  # (modulus, C)
        score, choice = (score[:, before] + log_probs[:, place, None, :]).max(2)
        chosen.append(choice)
    found = torch.empty(samples, places, dtype=torch.int64, device=logits.device)
    residue = torch.zeros(samples, dtype=torch.int64, device=logits.device)
    for place in reversed(range(places)):
        found[:, place] = chosen[place].gather(1, residue[:, None])[:, 0]
        residue = (residue - checksum.weights[place] * found[:, place]) % checksum.modulus
    return Reading(found, score[:, 0].isfinite(), score[:, 0])


def fast_track(views: Sequence[Tensor], checksum: Checksum, candidates: int) -> Reading:
    """The first view that is accepted: first of those whose first choices are valid, then with corrections.

    Args:
        views: each (N, L, C) logits of the same samples, in order of preference.
        checksum, candidates: as in ``read``.
    """
    readings = [read(logits, checksum, k) for k in (0, candidates) for logits in views]
    accepted = torch.stack([reading.accepted for reading in readings])  # (2 V, N)
    return _chosen(readings, accepted.int().argmax(0))


def full_voting(views: Sequence[Tensor], checksum: Checksum, candidates: int) -> Reading:
    """The string that most views accept, of equals the one with the larger sum of their log-probabilities.

    Args:
        views: each (N, L, C) logits of the same samples.
        checksum, candidates: as in ``read``.
    """
    readings = [read(logits, checksum, candidates) for logits in views]
    symbols = torch.stack([reading.symbols for reading in readings])  # (V, N, L)
    accepted = torch.stack([reading.accepted for reading in readings])
    log_prob = torch.stack([reading.log_prob for reading in readings])
    equal = (symbols[:, None] == symbols[None]).all(3) & accepted[None]  # (V, V, N)
    votes = equal.sum(1)
    support = torch.where(equal, log_prob[None], 0.0).sum(1).masked_fill(~accepted, -math.inf)
    support = support.masked_fill(votes < votes.masked_fill(~accepted, 0).max(0).values, -math.inf)
    return _chosen(readings, support.argmax(0))


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images turned about their centre, what comes in from outside repeating the border: (B, C, H, W) to the same."""
    height, width = images.shape[2:]
    angle = math.radians(degrees)
    turn = [
        [math.cos(angle), math.sin(angle) * height / width, 0.0],
        [-math.sin(angle) * width / height, math.cos(angle), 0.0],
    ]
    grid = F.affine_grid(images.new_tensor(turn).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Rotated(nn.Module):
    """A network that is shown its images turned.

    A picture of bars that is turned by 180 degrees is a barcode read backwards: a network that was trained on upright
    ones cannot read it.

    Args:
        network: from images (B, C, H, W).
        degrees: by how much.
    """

    def __init__(self, network: nn.Module, degrees: float) -> None:
        super().__init__()
        self.network, self.degrees = network, degrees

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives for the turned images."""
        given: Tensor = self.network(rotated(images, self.degrees) if self.degrees else images)
        return given


def _chosen(readings: Sequence[Reading], which: Tensor) -> Reading:
    """Of each sample the reading of this number, (N,)."""
    symbols, accepted, log_prob = (
        torch.stack([getattr(reading, field) for reading in readings])[which, torch.arange(len(which))]
        for field in ("symbols", "accepted", "log_prob")
    )
    return Reading(symbols, accepted, log_prob)


def _subsets(size: int) -> Tensor:
    """All subsets as rows of 0 and 1: (2^size, size) int64."""
    return torch.arange(2**size)[:, None] >> torch.arange(size) & 1
