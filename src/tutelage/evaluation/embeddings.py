"""Embeddings of a split: the input of a network's classifier, or the output of a network without a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
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
    """Embeddings and labels of the labelled samples of a split, sorted by value.

    A random selection from them therefore does not depend on the order of the samples in the split.

    Attributes:
        vectors: (N, D) float32 on the CPU.
        labels: (N,) int64, class numbers.
    """

    vectors: Tensor
    labels: Tensor

    def spread(self, most: int) -> Embeddings:
        """Select at most ``most`` samples, evenly spaced in the sorted order."""
        count = min(most, len(self.labels))
        indices = torch.linspace(0, max(len(self.labels) - 1, 0), count, dtype=torch.float64).round().long()
        return Embeddings(self.vectors[indices], self.labels[indices])


def embedder(model: nn.Module, data: Data) -> Tapped:
    """Return the network with the role ``embedding``, for training and evaluation.

    The role is the layer that the network or the caller names ``embedding``. Without such a name, it is the input of
    the classifier if the network has one output per class of the data, and the output (B, D) otherwise. For a network
    without a classifier whose output size equals the number of classes, name the output: ``roles={"embedding": ""}``.

    Args:
        model: a ``Tapped``, or any network that takes raw inputs; it is not changed.
        data: the data set, of which the number of classes and two training samples are used.

    Raises:
        TutelageError: no embedding is named, and the output is not of shape (B, D).
    """
    tapped = model if isinstance(model, Tapped) else Tapped(model)
    if ROLE in tapped.manual_roles:
        return tapped
    samples = data.train.subset(torch.arange(min(2, len(data.train))))
    batch = next(evaluation_batches(samples, device=tapped.mean.device, workers=0))
    with eval_mode(tapped), torch.no_grad():
        output: object = tapped(batch.inputs)
    if not isinstance(output, Tensor) or output.ndim != 2:
        description = (
            f"outputs of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        )
        raise TutelageError(
            f"{type(tapped.module).__name__} returns {description}, neither logits nor an embedding (B, D); name the "
            'layer that returns its embedding: roles={"embedding": "LAYER"}'
        )
    return tapped if output.shape[1] == data.num_classes else tapped.with_roles({ROLE: ""})


def embeddings(model: nn.Module, split: Split, data: Data, device: torch.device | str) -> Embeddings:
    """Compute the embeddings of the labelled samples of a split; a soft label is replaced by its largest class.

    Raises:
        TutelageError: the network has no embedding.
        NonFiniteError: an embedding is NaN or infinite.
    """
    labels = hard_labels(split.labels).cpu()
    vectors = predict_roles(embedder(model, data), split, (ROLE,), device=device).cpu()
    indices = (labels != UNLABELLED).nonzero().squeeze(1)
    labels, vectors = labels[indices], vectors[indices]
    order = torch.from_numpy(np.lexsort((labels.numpy(), *vectors.T.flip(0).numpy())))
    return Embeddings(vectors[order], labels[order])


def variance_ratio(vectors: Tensor, labels: Tensor) -> float:
    """The variance of embeddings between classes, divided by that within classes.

        sum_i ||m_{y_i} - m||^2 / sum_i ||f_i - m_{y_i}||^2

    f_i is an embedding divided by its length, m_c the mean of class c, and m the mean of all. The ratio is 0 if all
    classes have the same mean, and infinite if all embeddings of each class have the same direction.

    Args:
        vectors: (N, D).
        labels: (N,) class numbers, int64; samples without a label are excluded.
    """
    vectors, labels = vectors[labels != UNLABELLED].double(), labels[labels != UNLABELLED]
    unit = F.normalize(vectors)
    classes, row = torch.unique(labels, return_inverse=True)
    means = torch.stack([unit[labels == label].mean(0) for label in classes])[row]
    return float((means - unit.mean(0)).square().sum() / (unit - means).square().sum())
