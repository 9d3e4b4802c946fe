"""A fixed classifier of orthonormal vectors, the places of the classes in the space of features."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.outputs import at_least_float32
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation

COSINES = "cosines"
"""The role of the cosines between features and places, (B, classes)."""

Kind = Literal["identity", "random", "hadamard"]
Scores = Literal["cosine", "energy"]

EPS = 1e-8  # added to the energy in its logarithm
_SHORTEST = 1e-6  # features below this length have no direction


def orthonormal_basis(kind: Kind, classes: int, features: int, seed: int = 0) -> Tensor:
    """B with B B^T = I, (classes, features) float32: row c is the place of class c.

    Args:
        kind: "identity" for the first axes; "random" for the Q factor of a Gaussian matrix, made unique by a positive
            diagonal of R; "hadamard" for rows of Sylvester's Hadamard matrix divided by sqrt(features).
        classes: C.
        features: d, at least C; a power of two for "hadamard".
        seed: of the random basis.

    Raises:
        TutelageError: there is no such basis.
    """
    if kind not in get_args(Kind):
        raise unknown("orthonormal basis", kind, get_args(Kind))
    if features < classes:
        raise TutelageError(
            f"{classes} classes need {classes} orthogonal directions, and the classifier has only {features} inputs; "
            "use a wider network"
        )
    if kind == "identity":
        return torch.eye(classes, features)
    if kind == "hadamard":
        if features & (features - 1):
            raise TutelageError(
                f"a Hadamard basis needs a power of two as the number of features, got {features}; "
                "use the random basis, or another width"
            )
        matrix = torch.ones(1, 1)
        while len(matrix) < features:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        rows: Tensor = matrix[:classes] / math.sqrt(features)
        return rows
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(features, classes, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    unique: Tensor = q * r.diagonal().sign()
    return unique.T.float().contiguous()


def cosines(features: Tensor, basis: Tensor) -> Tensor:
    """b_c^T h / ||h|| of each sample and class, (B, C). It is 0 and has no gradient for ||h|| below 1e-6.

    Args:
        features: h, (B, d).
        basis: B, (C, d).
    """
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        too_short = length < _SHORTEST
        directions = (features / length.masked_fill(too_short, 1.0)).masked_fill(too_short, 0.0)
        values: Tensor = directions @ basis.to(features.dtype).T
    return values


class Places(nn.Module):
    """``cosines`` with a fixed basis, a buffer: it is saved with the weights, and neither trained nor decayed."""

    basis: Tensor

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) to (B, C)."""
        return cosines(features, self.basis)


class Logits(nn.Module):
    """Logits from cosines u: scale u, or, for energies, log(u^2 + 1e-8), whose softmax is u_c^2 / sum_j u_j^2."""

    def __init__(self, scores: Scores, scale: float) -> None:
        super().__init__()
        self.scores, self.scale = scores, scale

    def forward(self, values: Tensor) -> Tensor:
        """(B, C) to the same shape."""
        return (values.square() + EPS).log() if self.scores == "energy" else self.scale * values


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    basis: Kind = "identity",
    seed: int = 0,
    projection: int = 0,
    scores: Scores = "cosine",
    scale: float = 16.0,
) -> nn.Module:
    """Replace the classifier by fixed orthonormal vectors; the largest logit belongs to the nearest one.

    The features h are the inputs of the classifier. The cosines b_c^T h / ||h|| get the role ``cosines``, and the
    features the role ``embedding``.

    Args:
        network: inputs to logits, with an ``nn.Linear`` as its last layer, which is removed; it is changed. Its other
            keys do not change.
        example: inputs as the network takes them, (B, ...).
        basis, seed: as in ``orthonormal_basis``.
        projection: 1 adds a trained linear layer d to d before the fixed vectors, whose outputs are then h. Outputs of
            a ReLU are never negative and cannot point along vectors with negative elements. The layer is initialised
            like any ``nn.Linear``, from torch's global generator.
        scores: "cosine", or "energy" for squared cosines, in which h and -h are the same.
        scale: of the logits of "cosine", above 0.

    Raises:
        TutelageError: the network has no such classifier, or there is no such basis for it.
    """
    if scores not in get_args(Scores):
        raise unknown("kind of scores", scores, get_args(Scores))
    if not 0 < scale < math.inf:
        raise TutelageError(f"the scale of the cosines must be a finite number above 0, got {scale}; the default is 16")
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    width, weight = classifier.in_features, classifier.weight
    places = Places(orthonormal_basis(basis, classifier.out_features, width, seed))
    steps: list[tuple[str, nn.Module]] = [("places", places), ("logits", Logits(scores, scale))]
    if projection:
        steps.insert(0, ("projection", nn.Linear(width, width, dtype=weight.dtype)))
    # Find roles before the classifier is removed: otherwise the last layer with weights would count as the classifier.
    roles = find_roles(network, example, parse_roles(network, declared_roles(network)))
    fixed = nn.Sequential(OrderedDict(steps)).to(weight.device).train(network.training)
    network.set_submodule(layer, fixed)
    for role, tap in roles.items():
        add_role(network, role, str(tap))
    add_role(network, "embedding", f"input:{layer}.places")
    add_role(network, COSINES, f"{layer}.places")
    settings = {"basis": basis, "seed": seed, "projection": int(projection), "scores": scores, "scale": scale}
    append_operation(network, "orthogonal", **settings)
    return network
