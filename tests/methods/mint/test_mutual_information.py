"""The estimate of conditional mutual information: reference values, a reference in plain loops, and known faults."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from tutelage.methods.mint import estimate as module
from tutelage.methods.mint.estimate import dependence, nearest, spanning_tree, squared_distances

REPEATS = 10


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(kind: str, seed: int, samples: int = 900) -> tuple[Tensor, Tensor, Tensor]:
    """X, Y and Z of two dimensions each: independent, independent given Z, or dependent."""
    generator = seeded(seed)
    z, first, second = torch.randn(3, samples, 2, generator=generator)
    return {
        "independent": (first, second, z),
        "given z": (z + first, z + second, z),
        "dependent": (second + 0.1 * first, second, z),
    }[kind]


def estimates(kind: str, repeats: int = REPEATS) -> Tensor:
    values = []
    for seed in range(repeats):
        x, y, z = gaussian(kind, seed)
        values.append(dependence([x], [y, z], seeded(seed))[0, 0])
    return torch.stack(values).clamp(min=0)


def discriminates() -> bool:
    """The condition that the estimator has to meet."""
    return float(estimates("given z").mean()) < 0.2 and float(estimates("dependent").mean()) > 0.5


@pytest.mark.parametrize(("kind", "expected"), [("independent", 0.09), ("given z", 0.11), ("dependent", 0.58)])
def test_reference_values_of_gaussians(kind: str, expected: float) -> None:
    """The reference values have standard deviations of 0.02 to 0.04 (n = 900, two dimensions)."""
    assert float(estimates(kind).mean()) == pytest.approx(expected, abs=0.05)


def test_it_discriminates() -> None:
    assert discriminates()


def test_edges_misread_from_the_sparse_matrix_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of the released code: the counter of the stored entries is taken for the row."""

    def misread(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        trees = [minimum_spanning_tree((graph + second).numpy()) for graph in first]
        columns = torch.from_numpy(np.stack([tree.indices for tree in trees])).long()
        return torch.arange(columns.shape[1]).expand_as(columns), columns

    monkeypatch.setattr(module, "spanning_tree", misread)
    assert not discriminates()


def test_arbitrary_neighbours_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fault of the released code: nothing is conditioned on z."""

    def arbitrary(queries: Tensor, candidates: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(len(candidates), (len(queries),), generator=generator)

    estimates_before = float(estimates("given z").mean())
    monkeypatch.setattr(module, "nearest", arbitrary)
    assert float(estimates("given z").mean()) > estimates_before + 0.08
    assert not discriminates()


def test_samples_of_unpaired_rows_are_independent() -> None:
    x, y, z = gaussian("dependent", 0)
    order = torch.randperm(len(x), generator=seeded(1))
    assert dependence([x], [y, z], seeded(0))[0, 0] > 0.5
    assert dependence([x[order]], [y, z], seeded(0))[0, 0] < 0.2


def test_a_common_order_of_all_rows_does_not_matter() -> None:
    x, y, z = gaussian("dependent", 0)
    order = torch.randperm(len(x), generator=seeded(1))

    def mean(*tables: Tensor) -> float:
        return float(torch.stack([dependence([tables[0]], tables[1:], seeded(s))[0, 0] for s in range(5)]).mean())

    assert mean(x[order], y[order], z[order]) == pytest.approx(mean(x, y, z), abs=0.04)


def reference(x: Tensor, y: Tensor, z: Tensor, order: list[int]) -> float:
    """rho in plain loops: nearest neighbours, Kruskal's algorithm, and the joining edges."""

    def distance(a: list[float], b: list[float]) -> float:
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    size = len(order) // 3
    joint, moved, donors = order[:size], order[size : 2 * size], order[2 * size : 3 * size]
    points = [(0, x[i].tolist() + y[i].tolist() + z[i].tolist()) for i in joint]
    for i in moved:
        partner = min(donors, key=lambda b: distance(z[i].tolist(), z[b].tolist()))
        points.append((1, x[i].tolist() + y[partner].tolist() + z[i].tolist()))
    pairs = [(distance(points[a][1], points[b][1]), a, b) for a in range(2 * size) for b in range(a)]
    tree_of = list(range(2 * size))
    joining = 0
    for _, a, b in sorted(pairs):
        if tree_of[a] != tree_of[b]:
            joining += points[a][0] != points[b][0]
            old, new = tree_of[a], tree_of[b]
            tree_of = [new if tree == old else tree for tree in tree_of]
    return 1 - joining / size


@pytest.mark.parametrize("kind", ["given z", "dependent"])
def test_equals_plain_loops(kind: str) -> None:
    x, y, z = (table.double() for table in gaussian(kind, 3, samples=61))
    other = torch.randn(61, 1, generator=seeded(9), dtype=torch.float64)
    values = dependence([x, other], [y, z], seeded(5))
    order = torch.randperm(61, generator=seeded(5))[:60].tolist()
    assert values.shape == (2, 2)
    for row, child in enumerate((x, other)):
        assert float(values[row, 0]) == pytest.approx(reference(child, y, z, order))
        assert float(values[row, 1]) == pytest.approx(reference(child, z, y, order))


def test_chunks_of_children_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, z = gaussian("given z", 0, samples=90)
    whole = dependence([x, y, z], [y, z], seeded(0))
    monkeypatch.setattr(module, "_CHUNK", 1)
    assert torch.equal(dependence([x, y, z], [y, z], seeded(0)), whole)


def test_without_condition_the_rows_are_paired_at_random() -> None:
    x, y, _ = gaussian("dependent", 0)
    assert dependence([x], [y], seeded(0))[0, 0] > 0.5
    assert dependence([x.flip(0)], [y], seeded(0))[0, 0] < 0.2


@pytest.mark.parametrize(
    "points",
    [
        lambda: torch.randn(40, 3, generator=seeded(0), dtype=torch.float64),
        lambda: torch.randint(2, (40, 2), generator=seeded(0)).double(),  # most rows are duplicates
        lambda: torch.zeros(40, 2, dtype=torch.float64),
    ],
    ids=["distinct", "duplicates", "all equal"],
)
def test_spanning_tree(points: Callable[[], Tensor]) -> None:
    """n - 1 edges that connect all nodes, of minimum total length."""
    distances = squared_distances(points())
    one, other = spanning_tree(distances[None], torch.zeros_like(distances))
    assert one.shape == (1, 39)
    reached = {0}
    for a, b in zip(one[0].tolist(), other[0].tolist(), strict=True):
        assert a in reached
        assert b not in reached
        reached.add(b)
    assert reached == set(range(40))
    # SciPy takes 0 for a missing edge, so all lengths are 1 longer.
    expected = minimum_spanning_tree((distances + 1).numpy()).sum() - 39
    assert float(distances[one[0], other[0]].sum()) == pytest.approx(expected, abs=1e-8)


def test_constant_activations_are_independent() -> None:
    """Dead units, whose rows are all equal."""
    constant = torch.zeros(90, 2)
    assert dependence([constant], [constant, constant], seeded(0))[0, 0] <= 0


def test_nearest_breaks_ties_at_random() -> None:
    candidates = torch.tensor([[0.0], [2.0], [0.0]])
    queries = torch.cat([torch.zeros(200, 1), torch.full((5, 1), 1.9)])
    chosen = nearest(queries, candidates, seeded(0))
    assert set(chosen[:200].tolist()) == {0, 2}
    assert set(chosen[200:].tolist()) == {1}


def test_planted_connections_have_the_highest_scores() -> None:
    """Three groups of two units, each of which reads one group of the layer before."""
    generator = seeded(0)
    parents = torch.randn(1500, 3, 2, generator=generator)
    children = torch.einsum("ngi,gio->ngo", parents, torch.randn(3, 2, 2, generator=generator)).tanh()
    scores = dependence(list(children.unbind(1)), list(parents.unbind(1)), generator)
    assert scores.argmax(1).tolist() == [0, 1, 2]
    assert float(scores.diagonal().min()) > float((scores - 2 * torch.eye(3)).max()) + 0.1
