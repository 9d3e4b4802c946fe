"""Divisions of samples among clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tutelage.methods.dlad.partition import by_classes, by_dirichlet

LABELS = np.repeat(np.arange(-1, 10), 24)  # 24 samples without a label, then 24 of each of ten classes


def counts(parts: list[Any], classes: int = 10) -> Any:
    """(clients, classes): how many samples of each class a client has; no sample may belong to two clients."""
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    return np.stack([np.bincount(LABELS[part], minlength=classes) for part in parts])


@pytest.mark.parametrize(("per_client", "owners"), [(2, 1), (4, 2), (10, 5)])
def test_each_client_has_as_many_classes(per_client: int, owners: int) -> None:
    table = counts(by_classes(LABELS, 10, 5, per_client, np.random.default_rng(3)))
    assert ((table > 0).sum(1) == per_client).all()
    assert ((table > 0).sum(0) == owners).all()
    assert (table.sum(0) == 24).all()
    in_class = table.max(0)
    assert (np.where(table > 0, in_class - table, 0) <= 1).all()  # divided evenly


def test_clients_share_classes_where_their_number_is_no_divisor() -> None:
    table = counts(by_classes(LABELS, 10, 3, 4, np.random.default_rng(0)))
    assert ((table > 0).sum(1) == 4).all()
    assert (table.sum(0) == 24).all()


def test_more_clients_than_classes() -> None:
    table = counts(by_classes(LABELS, 10, 20, 1, np.random.default_rng(0)))
    assert ((table > 0).sum(1) == 1).all()
    assert (table.sum(1) == 12).all()


@pytest.mark.parametrize(
    "divide", [lambda rng: by_classes(LABELS, 10, 5, 2, rng), lambda rng: by_dirichlet(LABELS, 10, 5, 0.5, rng)]
)
def test_division_depends_on_the_generator_alone(divide: Any) -> None:
    first, again, other = (divide(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all((LABELS[part] >= 0).all() for part in first)
    assert sum(map(len, first)) == 240


def test_concentration_of_dirichlet_shares() -> None:
    def largest_share(alpha: float) -> float:
        tables = [counts(by_dirichlet(LABELS, 10, 4, alpha, np.random.default_rng(seed))) for seed in range(10)]
        return float(np.mean([table.max(0) / table.sum(0) for table in tables]))

    assert largest_share(0.1) > 0.75
    assert 0.25 <= largest_share(1000) < 0.32


def test_dirichlet_shares_are_drawn_again_until_each_client_has_a_sample() -> None:
    for seed in range(5):  # of ten classes with almost one client each, five clients rarely get all
        parts = by_dirichlet(LABELS, 10, 5, 0.001, np.random.default_rng(seed))
        assert min(map(len, parts)) > 0


@pytest.mark.parametrize("per_client", [0, 1, 11])
def test_invalid_number_of_classes_is_refused(per_client: int, refused: Any) -> None:
    with refused(f"5 clients of {per_client} classes", "from 2 to 10"):
        by_classes(LABELS, 10, 5, per_client, np.random.default_rng(0))


def test_clients_without_a_sample_are_refused(refused: Any) -> None:
    few = np.arange(4)
    with refused("4 of 8 clients", "fewer clients"):
        by_classes(few, 4, 8, 1, np.random.default_rng(0))
    with refused("of 5 clients", "larger alpha"):
        by_dirichlet(few, 4, 5, 1.0, np.random.default_rng(0))
