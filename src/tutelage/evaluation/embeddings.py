"""The embeddings of a part: what a network gives its classifier, or its output if it has no classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import predict_roles
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped

ROLE = "embedding"


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The labelled samples of a part as vectors, in an order that their values determine.

    What is drawn from them does not depend on the order of the samples in the part.

    Attributes:
        vectors: (N, D) float32 on the CPU.
        labels: (N,) int64, their classes.
    """

    vectors: Tensor
    labels: Tensor

    def spread(self, most: int) -> Embeddings:
        """At most so many of them, at equal distances in their order."""
        count = min(most, len(self.labels))
        places = torch.linspace(0, max(len(self.labels) - 1, 0), count, dtype=torch.float64).round().long()
        return Embeddings(self.vectors[places], self.labels[places])


def embedder(model: nn.Module, data: Data) -> Tapped:
    """A network with the role ``embedding``, for training and evaluation alike.

    The role is the layer that the network or the caller names ``embedding``. Of other networks it is the input of the
    classifier, where the output has one number for each class of the data, and the output (B, D) otherwise. Where a
    network without a classifier has as many outputs as there are classes, name the output: ``roles={"embedding": ""}``.

    Args:
        model: a ``Tapped``, or any network of raw inputs; it is not changed.
        data: the number of its classes is read, and two of its training samples.

    Raises:
        TutelageError: no embedding is named, and the output is no (B, D).
    """
    tapped = model if isinstance(model, Tapped) else Tapped(model)
    if ROLE in tapped.manual_roles:
        return tapped
    few = data.train.subset(torch.arange(min(2, len(data.train))))
    batch = next(evaluation_batches(few, device=tapped.mean.device, workers=0))
    with eval_mode(tapped), torch.no_grad():
        output: object = tapped(batch.inputs)
    if not isinstance(output, Tensor) or output.ndim != 2:
        given = (
            f"outputs of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        )
        raise TutelageError(
            f"{type(tapped.module).__name__} gives {given}, no logits and no embedding (B, D); name the layer "
            'that gives its embedding: roles={"embedding": "LAYER"}'
        )
    return tapped if output.shape[1] == data.num_classes else tapped.with_roles({ROLE: ""})


def embeddings(model: nn.Module, split: Split, data: Data, device: torch.device | str) -> Embeddings:
    """The embeddings of the samples of a part that have a class; soft labels count as their largest class.

    Raises:
        TutelageError: the network has no embedding.
        NonFiniteError: an embedding is NaN or infinite.
    """
    labels = hard_labels(split.labels).cpu()
    vectors = predict_roles(embedder(model, data), split, (ROLE,), device=device).cpu()
    places = (labels != UNLABELLED).nonzero().squeeze(1)
    labels, vectors = labels[places], vectors[places]
    order = torch.from_numpy(np.lexsort((labels.numpy(), *vectors.T.flip(0).numpy())))
    return Embeddings(vectors[order], labels[order])
