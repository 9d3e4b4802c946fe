"""Recognition of strings with a checksum: "smart inference" (Do et al. 2020, arXiv 2004.06297)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.formats.ean13 import Checksum
from tutelage.errors import TutelageError

MOST_CANDIDATES = 10  # of which 2^K strings are evaluated


@dataclass(frozen=True, slots=True)
class Reading:
    """The strings recognised for N samples.

    Attributes:
        symbols: (N, L) int64; if no string was accepted, the most probable symbols.
        accepted: (N,) bool. A sample that is not accepted counts as "no read".
        log_prob: (N,) float32, the sum over positions of the symbols' log-probabilities.
    """

    symbols: Tensor
    accepted: Tensor
    log_prob: Tensor


def read(logits: Tensor, checksum: Checksum, candidates: int) -> Reading:
    """Recognise strings, correcting the K least certain symbols by the checksum.

    The margin of a position is p(first) - p(second) of its softmax. In each subset of the K positions of smallest
    margin, the most probable symbol is replaced by the second: 2^K strings. Among those with a valid checksum, the
    string with the largest sum of log-probabilities is accepted; if none is valid, no string is accepted. A valid
    string of most probable symbols is therefore accepted unchanged for every K, and K = 0 only checks the checksum.
    The preference among several valid strings is inferred: the paper could not be read in full.

    Args:
        logits: (N, L, C), C at least 2.
        checksum: of strings of L symbols, numbered as the logits are.
        candidates: K, from 0 to 10.

    Raises:
        TutelageError: K is outside this range.
    """
    if not 0 <= candidates <= MOST_CANDIDATES:
        raise TutelageError(f"smart inference corrects 0 to {MOST_CANDIDATES} symbols, got {candidates}")
    log_probs = logits.float().log_softmax(2)
    positions = logits.shape[1]
    best, symbols = log_probs.topk(2, dim=2)  # (N, L, 2)
    first, second = symbols.unbind(2)
    margin = best.exp() @ best.new_tensor([1.0, -1.0])
    uncertain = margin.argsort(dim=1, stable=True)[:, : min(candidates, positions)]  # (N, K)
    subsets = _subsets(uncertain.shape[1]).to(logits.device)  # (2^K, K), the empty one first
    change = torch.tensor(checksum.weights, device=logits.device) * (second - first)
    cost = best[:, :, 0] - best[:, :, 1]
    pick = subsets.T.float()  # GPUs have no integer matrix product; these small integers are exact as floats
    changes = (change.gather(1, uncertain).float() @ pick).long() + checksum.residue(first)[:, None]
    costs = (cost.gather(1, uncertain) @ pick).masked_fill(changes % checksum.modulus != 0, math.inf)
    least, choice = costs.min(1)
    choice = torch.where(costs[:, 0] == 0, 0, choice)  # among ties prefer the most probable symbols
    swapped = torch.zeros_like(first).scatter(1, uncertain, subsets[choice]).bool()
    accepted = least.isfinite()
    corrected = torch.where(swapped & accepted[:, None], second, first)
    log_prob = best[:, :, 0].sum(1) - torch.where(accepted, least, 0.0)
    return Reading(corrected, accepted, log_prob)


def most_probable(logits: Tensor, checksum: Checksum) -> Reading:
    """Return the valid string with the largest sum of log-probabilities among all C^L strings.

    An exact search by dynamic programming over the positions and the residue of the prefix.

    Args:
        logits: (N, L, C).
        checksum: of strings of L symbols; residues are added modulo ``checksum.modulus``.
    """
    log_probs = logits.float().log_softmax(2)
    samples, positions, symbols = log_probs.shape
    residues = torch.arange(checksum.modulus, device=logits.device)
    score = log_probs.new_full((samples, checksum.modulus), -math.inf)
    score[:, 0] = 0
    choices: list[Tensor] = []
    for position, weight in enumerate(checksum.weights):
        added = weight * torch.arange(symbols, device=logits.device) % checksum.modulus
        before = (residues[:, None] - added) % checksum.modulus  # (modulus, C)
        score, choice = (score[:, before] + log_probs[:, position, None, :]).max(2)
        choices.append(choice)
    symbols_read = torch.empty(samples, positions, dtype=torch.int64, device=logits.device)
    residue = torch.zeros(samples, dtype=torch.int64, device=logits.device)
    for position in reversed(range(positions)):
        symbols_read[:, position] = choices[position].gather(1, residue[:, None])[:, 0]
        residue = (residue - checksum.weights[position] * symbols_read[:, position]) % checksum.modulus
    return Reading(symbols_read, score[:, 0].isfinite(), score[:, 0])


def fast_track(views: Sequence[Tensor], checksum: Checksum, candidates: int) -> Reading:
    """Return the first accepted reading of the views, first without corrections, then with corrections.

    Args:
        views: each (N, L, C) logits of the same samples, in order of preference.
        checksum, candidates: as in ``read``.
    """
    readings = [read(logits, checksum, k) for k in (0, candidates) for logits in views]
    accepted = torch.stack([reading.accepted for reading in readings])  # (2 V, N)
    return _select(readings, accepted.int().argmax(0))


def full_voting(views: Sequence[Tensor], checksum: Checksum, candidates: int) -> Reading:
    """Return the string accepted by most views; ties are broken by the sum of their log-probabilities.

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
    return _select(readings, support.argmax(0))


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Rotate images (B, C, H, W) about their centre; pixels from outside repeat the border."""
    height, width = images.shape[2:]
    angle = math.radians(degrees)
    matrix = [
        [math.cos(angle), math.sin(angle) * height / width, 0.0],
        [-math.sin(angle) * width / height, math.cos(angle), 0.0],
    ]
    grid = F.affine_grid(images.new_tensor(matrix).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Rotated(nn.Module):
    """A network applied to rotated images.

    An image of a barcode rotated by 180 degrees is a barcode read backwards, which a network trained on upright
    barcodes cannot recognise.

    Args:
        network: takes images (B, C, H, W).
        degrees: angle of rotation.
    """

    def __init__(self, network: nn.Module, degrees: float) -> None:
        super().__init__()
        self.network, self.degrees = network, degrees

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output for the rotated images."""
        output: Tensor = self.network(rotated(images, self.degrees) if self.degrees else images)
        return output


def _select(readings: Sequence[Reading], which: Tensor) -> Reading:
    """Select for each sample the reading with index ``which``, (N,)."""
    symbols, accepted, log_prob = (
        torch.stack([getattr(reading, field) for reading in readings])[which, torch.arange(len(which))]
        for field in ("symbols", "accepted", "log_prob")
    )
    return Reading(symbols, accepted, log_prob)


def _subsets(size: int) -> Tensor:
    """Return all subsets as rows of 0 and 1: (2^size, size) int64."""
    return torch.arange(2**size)[:, None] >> torch.arange(size) & 1
