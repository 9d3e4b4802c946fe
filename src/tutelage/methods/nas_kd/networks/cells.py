"""Networks of cells for texts: one cell repeated, with chosen operations or with all candidates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.nas_kd.candidates import CANDIDATES, NONE
from tutelage.models.family import Family
from tutelage.models.tokens import masked_mean, text_mask

EDGES = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4))
"""The states that each edge of a cell connects: 0 and 1 are its inputs, 2 to 4 its nodes."""
NODES = (2, 3, 4)


class Edge(nn.Module):
    """The candidate operations of an edge, or the chosen one."""

    def __init__(self, channels: int, choice: int | None) -> None:
        super().__init__()
        numbers = range(len(CANDIDATES)) if choice is None else (choice,)
        for number in numbers:
            candidate = CANDIDATES[number]
            self.add_module(candidate.name, candidate.build(channels, affine=choice is not None))

    def forward(self, x: Tensor, mask: Tensor, weights: Tensor | int) -> Tensor:
        """(B, T, C) and (B, T, 1) to the sum of the operations with weights (10,), or one of them, (B, T, C)."""
        operations = [*self.children()]
        if not isinstance(weights, Tensor):
            one: Tensor = operations[weights](x, mask)
            return one
        pairs = zip(weights.unbind(), operations, strict=True)
        return torch.stack([weight * operation(x, mask) for weight, operation in pairs]).sum(0)


class Projection(nn.Module):
    """A dense layer for each token, after a ReLU if ``relu``, and a normalisation."""

    def __init__(self, inputs: int, outputs: int, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.dense, self.norm = nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) to (B, T, outputs)."""
        out: Tensor = self.norm(self.dense(F.relu(x) if self.relu else x))
        return out


class Cell(nn.Module):
    """Three nodes, each the sum of its edges from the two inputs and the nodes before; the output is their sum."""

    def __init__(self, channels: int, choices: Sequence[int | None]) -> None:
        super().__init__()
        self.first, self.second = (Projection(channels, channels, relu=True) for _ in range(2))
        self.edges = nn.ModuleList([Edge(channels, choice) for choice in choices])

    def forward(self, before: Tensor, last: Tensor, mask: Tensor, weights: Sequence[Tensor | int]) -> Tensor:
        """The outputs (B, T, C) of the two cells before, the mask (B, T, 1) and each edge's weights to (B, T, C)."""
        states = {0: self.first(before) * mask, 1: self.second(last) * mask}
        for node in NODES:
            inputs = [
                edge(states[source], mask, weight)
                for (source, target), edge, weight in zip(EDGES, self.edges, weights, strict=True)
                if target == node
            ]
            states[node] = torch.stack(inputs).sum(0) * mask
        output: Tensor = states[2] + states[3] + states[4]
        return output


class Record(nn.Module):
    """The identity: its output is the value of a role."""

    def forward(self, values: Tensor) -> Tensor:
        """The same tensor."""
        return values


class Cells(nn.Module):
    """Embeddings, two dense layers, cells, and a classifier of the mean over the text.

    Without chosen operations it is a search network: each edge weighs all candidates, by one matrix ``alpha`` for all
    cells, and ``kappa`` weighs the numbers of cells. In train mode weights are one-hot draws of the Gumbel-softmax with
    straight-through gradients, one for each pass; in eval mode the most probable operation other than none is computed.

    Padding has no influence: states are 0 there, the normalisation is that of each token, and the mean and maximum are
    those of the text. Texts may have any length.

    Args:
        depth: K, the number of cells.
        channels: C.
        num_classes: outputs of the classifier.
        vocabulary: the number of tokens, including padding.
        padding: the token that fills shorter texts.
        embedding: the width of the token table; by default C.
        node2, node3, node4: the chosen operations of the edges into each node, as decimal digits: 41 are ``CANDIDATES``
            4 and 1. All or none of them.

    Attributes:
        roles: ``stage1`` .. ``stageK`` are the cells (B, T, C). Of a search network also ``operations`` (9, 10), the
            weights of the pass, and ``cells`` (K,), those of the numbers of cells.
        temperature: of the Gumbel-softmax, ().
    """

    temperature: Tensor

    def __init__(
        self,
        depth: int,
        channels: int,
        num_classes: int,
        vocabulary: int,
        padding: int,
        embedding: int | None = None,
        node2: int | None = None,
        node3: int | None = None,
        node4: int | None = None,
    ) -> None:
        super().__init__()
        self.padding, self.channels = padding, channels
        self.searching = node2 is None
        numbers = [None] * len(EDGES) if node2 is None else digits_of(f"{node2:02}-{node3:03}-{node4:04}")
        width = channels if embedding is None else embedding
        self.table = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.stems = nn.ModuleList([Projection(width, channels, relu=False) for _ in range(2)])
        self.cells = nn.ModuleList([Cell(channels, numbers) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, num_classes)
        self.roles = {"stem": "stems.1"} | {f"stage{number + 1}": f"cells.{number}" for number in range(depth)}
        if self.searching:
            self.roles |= {"operations": "operations", "cells": "cell_counts"}
            self.alpha = nn.Parameter(torch.zeros(len(EDGES), len(CANDIDATES)))
            self.kappa = nn.Parameter(torch.zeros(depth))
            self.operations, self.cell_counts = Record(), Record()
            self.register_buffer("temperature", torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) int64 to logits (B, num_classes)."""
        mask = text_mask(tokens, self.padding)
        places = mask[:, :, None]
        weights: Sequence[Tensor | int] = [0] * len(EDGES)
        if self.searching:
            drawn = self.operations(self._operations())
            whole = self.training or torch.compiler.is_compiling()
            weights = drawn.unbind() if whole else drawn.argmax(1).tolist()
        embedded = self.table(tokens)
        before, last = (stem(embedded) * places for stem in self.stems)
        for cell in self.cells:
            before, last = last, cell(before, last, places, weights)
        if self.searching:
            self.cell_counts(self._cell_counts())
        logits: Tensor = self.head(masked_mean(self.norm(last), mask))
        return logits

    def _operations(self) -> Tensor:
        if self.training:
            return F.gumbel_softmax(self.alpha, self.temperature, hard=True)  # type: ignore[arg-type]
        best = self.alpha[:, NONE + 1 :].argmax(1) + NONE + 1
        return F.one_hot(best, len(CANDIDATES)).to(self.alpha)

    def _cell_counts(self) -> Tensor:
        if self.training:
            return F.gumbel_softmax(self.kappa, self.temperature, hard=True)  # type: ignore[arg-type]
        return F.one_hot(self.kappa.argmax(), len(self.kappa)).to(self.kappa)

    @torch.no_grad()
    def most_probable(self) -> tuple[str, int]:
        """The cell of the most probable operations other than none, and the number of cells."""
        if not self.searching:
            raise TutelageError("the operations of this network are chosen already; give a search network")
        best = self.alpha[:, NONE + 1 :].argmax(1) + NONE + 1
        return cell_of(best.tolist()), int(self.kappa.argmax()) + 1

    def with_cell(self, cell: str, depth: int) -> Cells:
        """A new network with this cell, and the weights of this one for its operations.

        Args:
            cell: its operations, such as "41-457-1842".
            depth: at most that of this network.

        Raises:
            TutelageError: there is no such cell, or this is no search network of that depth.
        """
        node2, node3, node4 = (int(part) for part in checked_cell(cell).split("-"))
        if not self.searching or not 1 <= depth <= len(self.cells):
            raise TutelageError(f"{depth} cells cannot be chosen from a network of {len(self.cells)} chosen or fewer")
        weight = self.table.weight
        network = Cells(
            depth,
            self.channels,
            self.head.out_features,
            self.table.num_embeddings,
            self.padding,
            self.table.embedding_dim,
            node2,
            node3,
            node4,
        ).to(weight)
        own = self.state_dict()
        network.load_state_dict({name: own[name] for name in network.state_dict() if name in own}, strict=False)
        return network.train(self.training)


def checked_cell(cell: str) -> str:
    """The cell, after a check of its form.

    Raises:
        TutelageError: it has another form.
    """
    if not re.fullmatch(r"[0-9]{2}-[0-9]{3}-[0-9]{4}", cell):
        raise TutelageError(
            f"a cell has a digit for each edge into its three nodes, such as 41-457-1842, and this is {cell!r:.40}"
        )
    return cell


def digits_of(cell: str) -> list[int | None]:
    """The number of the operation of each of the nine edges."""
    return [int(digit) for digit in cell if digit != "-"]


def cell_of(numbers: Sequence[int]) -> str:
    """The cell with these operations on its nine edges, such as "41-457-1842"."""
    digits = "".join(map(str, numbers))
    return f"{digits[:2]}-{digits[2:5]}-{digits[5:]}"


FAMILY = Family(
    re.compile(
        r"cells-(?P<depth>[1-9][0-9]?)-(?P<channels>[1-9][0-9]*)(?:e(?P<embedding>[1-9][0-9]*))?"
        r"(?:-(?P<node2>[0-9]{2})-(?P<node3>[0-9]{3})-(?P<node4>[0-9]{4}))?"
    ),
    Cells,
    ("cells-2-32", "cells-3-32e64", "cells-2-32-41-457-1842"),
    "cells of nas_kd, for texts: cells-<cells>-<channels>, e<width> of embeddings, operations of each node's edges",
    "after Chen et al. 2020 (AdaBERT), arXiv 2001.04246",
)
