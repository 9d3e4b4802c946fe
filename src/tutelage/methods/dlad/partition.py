"""Divisions of labelled samples among clients whose classes differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

Indices = NDArray[np.int64]

DRAWS = 100


def by_classes(
    labels: Indices, num_classes: int, clients: int, per_client: int, generator: np.random.Generator
) -> list[Indices]:
    """Give each client the same number of classes; the samples of a class are divided evenly among its clients.

    The classes are shuffled and put on a circle; client i of N has the ``per_client`` classes from position
    floor(i C / N) on. With ``per_client`` = C / N the clients have no class in common, and with C they have identical
    distributions.

    Args:
        labels: (M,) class numbers, -1 for no label.
        num_classes: C.
        clients: N.
        per_client: the number of classes of each client, 1 to C.
        generator: shuffles classes and samples.

    Returns:
        The sorted indices of each client; samples without a label belong to none.

    Raises:
        TutelageError: a class would belong to no client, or a client would have no sample.
    """
    if not -(-num_classes // clients) <= per_client <= num_classes:
        raise TutelageError(
            f"{clients} clients of {per_client} classes each cannot divide {num_classes} classes; give each from "
            f"{-(-num_classes // clients)} to {num_classes} classes"
        )
    circle = generator.permutation(num_classes)
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for client in range(clients):
        for step in range(per_client):
            owners[circle[(client * num_classes // clients + step) % num_classes]].append(client)
    owner = np.full(len(labels), -1)
    for label in range(num_classes):
        members = generator.permutation(np.flatnonzero(labels == label))
        order = generator.permutation(owners[label])
        owner[members] = order[np.arange(len(members)) % len(order)]
    return _indices(owner, clients, "use fewer clients")


def by_dirichlet(
    labels: Indices, num_classes: int, clients: int, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    """Draw the shares of the clients in each class from a symmetric Dirichlet distribution.

    If a client has no sample, all shares are drawn again, up to 100 times.

    Args:
        labels: (M,) class numbers, -1 for no label.
        num_classes: C.
        clients: N.
        alpha: concentration, above 0; small values give clients with few classes, large ones even shares.
        generator: draws the shares and shuffles the samples.

    Returns:
        The sorted indices of each client; samples without a label belong to none.

    Raises:
        TutelageError: a client would have no sample.
    """
    for _ in range(DRAWS):
        owner = np.full(len(labels), -1)
        for label in range(num_classes):
            members = generator.permutation(np.flatnonzero(labels == label))
            ends = np.rint(generator.dirichlet(np.full(clients, alpha)).cumsum() * len(members)).astype(int)
            owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right").clip(max=clients - 1)
        if len(np.unique(owner[owner >= 0])) == clients:
            break
    return _indices(owner, clients, "use fewer clients or a larger alpha")


def _indices(owner: Indices, clients: int, remedy: str) -> list[Indices]:
    parts = [np.flatnonzero(owner == client) for client in range(clients)]
    if empty := sum(len(part) == 0 for part in parts):
        raise TutelageError(f"{empty} of {clients} clients would have no labelled sample; {remedy}")
    return parts
