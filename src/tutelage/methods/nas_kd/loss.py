"""The loss of networks of cells: labels and the teacher's layers for the head of each cell, and the expected size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.nas_kd.candidates import relative_costs
from tutelage.models.outputs import Outputs
from tutelage.models.tokens import masked_mean, text_mask
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.term import Term


def layer_weights(depth: int, probe_losses: Sequence[float]) -> Tensor:
    """Which teacher layer teaches which head, and how much, for each number of cells.

        A[k, i, j] = softmax over i <= k of -(loss of probe j(i, k)), where j = j(i, k) = ceil(i L / k), else 0

    Args:
        depth: K, the largest number of cells.
        probe_losses: the mean cross-entropy of each of the L probes.

    Returns:
        (K, K, L); the entries of each k sum to 1. Indices here count from 1, those of the tensor from 0.
    """
    weights = torch.zeros(depth, depth, len(probe_losses))
    for k in range(1, depth + 1):
        layers = [math.ceil(i * len(probe_losses) / k) - 1 for i in range(1, k + 1)]
        shares = torch.tensor([-probe_losses[layer] for layer in layers], dtype=torch.float64).softmax(0)
        for head, (layer, share) in enumerate(zip(layers, shares.tolist(), strict=True)):
            weights[k - 1, head, layer] = share
    return weights


@full_precision
def distilled_heads(
    heads: Tensor, probes: Tensor, targets: Tensor, weights: Tensor, gamma: float, temperature: float
) -> Tensor:
    """The loss of a network of k cells for each sample, for each k up to K.

        L_k = (1 - gamma) 1/k sum_{i <= k} CE(s_i, y) + gamma sum_{i <= k} sum_j A[k, i, j] T^2 KL(t_j/T || s_i/T)

    Args:
        heads: s, the logits of the head of each cell, (K, B, C).
        probes: t, the logits of the teacher's layers, (L, B, C); no gradient reaches them.
        targets: class numbers (B,), -1 for none, or soft labels (B, C).
        weights: A, (K, K, L), from ``layer_weights``.
        gamma: the weight of the teacher.
        temperature: T, of both sides.

    Returns:
        (K, B) nats.
    """
    depth, layers = len(heads), len(probes)
    labels = torch.stack([cross_entropy(head, targets) for head in heads])
    counts = torch.arange(1, depth + 1, device=heads.device, dtype=labels.dtype)
    of_labels = labels.cumsum(0) / counts[:, None]
    log_probs = (heads / temperature).log_softmax(-1)[:, None].expand(-1, layers, -1, -1)
    target = (probes.detach() / temperature).log_softmax(-1)[None].expand(depth, -1, -1, -1)
    divergence = temperature**2 * kl_divergence(target, log_probs)  # (K, L, B)
    of_teacher = (weights.to(divergence).flatten(1) @ divergence.flatten(0, 1)).view(depth, -1)
    return (1 - gamma) * of_labels + gamma * of_teacher


class Heads(nn.ModuleList):
    """Auxiliary classifiers of the cells before the last: normalisation, mean over the text, dense layer."""

    def __init__(self, count: int, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.ModuleDict({"norm": nn.LayerNorm(channels), "dense": nn.Linear(channels, num_classes)})
            for _ in range(count)
        )

    def logits(self, stages: Sequence[Tensor], mask: Tensor, last: Tensor) -> Tensor:
        """The cells' outputs (B, T, C), the mask (B, T) and the network's logits to those of all heads, (K, B, C)."""
        outputs = [
            head["dense"](masked_mean(head["norm"](stage), mask))  # type: ignore[index]
            for head, stage in zip(self, stages, strict=True)
        ]
        return torch.stack([*outputs, last])


class DistilledHeads(Term):
    """``distilled_heads`` of a network of cells, per sample (B,).

    Args:
        heads: the auxiliary heads, which the learner of this term trains.
        probe_roles: the teacher's roles of its layers' logits.
        probe_losses: the mean cross-entropy of each.
        padding: the token that fills shorter texts.
        gamma, temperature: see ``distilled_heads``.
        searching: whether the network chooses its number of cells: the loss is then that of the number drawn in the
            pass, and its gradient reaches the weights of all. Otherwise it is that of all cells.
        trained: whether the heads are trained and saved with this term, or belong to another.
    """

    uses_soft_labels = True

    def __init__(
        self,
        heads: Heads,
        probe_roles: tuple[str, ...],
        probe_losses: Sequence[float],
        padding: int,
        gamma: float,
        temperature: float,
        *,
        searching: bool,
        trained: bool = True,
    ) -> None:
        super().__init__()
        self.stages = tuple(f"stage{number + 1}" for number in range(len(heads)))
        self.roles = (*self.stages, "logits", *(("cells",) if searching else ()))
        self.probe_roles, self.padding, self.gamma, self.temperature = probe_roles, padding, gamma, temperature
        self.searching = searching
        if trained:
            self.own_heads = heads
        self._heads = (heads,)  # in a tuple, so that they are no part of this module
        self.register_buffer("weights", layer_weights(len(heads) + 1, probe_losses), persistent=False)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """Those of the probes."""
        return self.probe_roles

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Move the heads to the device of the student."""
        self._heads[0].to(student["logits"].device)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        teacher, batch = self.required(teacher), self.required(batch, "the batch, for its tokens and targets")
        mask = text_mask(batch.inputs, self.padding)
        heads = self._heads[0].logits([student[stage] for stage in self.stages], mask, student["logits"])
        probes = torch.stack([teacher[role] for role in self.probe_roles])
        weights = self.get_buffer("weights")
        losses = distilled_heads(heads, probes, batch.targets, weights, self.gamma, self.temperature)
        return student["cells"] @ losses if self.searching else losses[-1]


class ExpectedSize(Term):
    """The expected size of the network that a search network would become, ().

        L_E = sum_k v_k k / K  x  1/9 sum over edges of sum_o u_o (size_o + flops_o) / 2

    with size and operations relative to the largest candidate, so that L_E is in [0, 1]; u and v are the weights of
    operations and numbers of cells in the pass.

    Args:
        channels: of the cells.
    """

    roles = ("operations", "cells")
    reads_labels = False
    reads_teacher = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("costs", relative_costs(channels), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        operations, cells = student["operations"], student["cells"]
        counts = torch.arange(1, len(cells) + 1, device=cells.device, dtype=cells.dtype)
        return (cells * counts).sum() / len(cells) * (operations @ self.get_buffer("costs")).mean()
