"""Node cross-entropy and leaf probabilities: closed forms, plain loops, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.data import Batch, Hierarchy
from tutelage.methods.chillax.loss import NodeCrossEntropy
from tutelage.methods.chillax.surgery.nodes import hierarchy_of, leaf_log_probabilities
from tutelage.models.outputs import Outputs

LN2 = math.log(2)
TREE = Hierarchy.of(
    {"A": [f"a{i}" for i in range(5)], "B": [f"b{i}" for i in range(5)]},
    [*(f"a{i}" for i in range(5)), *(f"b{i}" for i in range(5))],
)
A, B, ROOT = 10, 11, 12
DEEP = Hierarchy.of({"X": {"Y": {"Z": ["p", "q"], "t": None}, "r": None}, "s": None}, list("pqtrs"))
DIAMOND = Hierarchy.of({"top": {"L": ["l", "both"], "R": ["both", "r"]}}, ["l", "both", "r"])


def loss(hierarchy: Hierarchy, logits: Tensor, labels: Tensor) -> Tensor:
    count = len(labels)
    batch = Batch(torch.zeros(count, 1), labels, torch.arange(count), None)
    return NodeCrossEntropy("nodes", hierarchy)(Outputs(None, {"nodes": logits}), None, batch)  # type: ignore[no-any-return]


def soft(hierarchy: Hierarchy, node: int) -> Tensor:
    below = hierarchy.below[node].float()
    return (below / below.sum())[None]


@pytest.mark.parametrize(("node", "nodes"), [(0, 8), (A, 3), (ROOT, 1)])
def test_loss_at_zero_logits_counts_the_nodes_that_the_label_determines(node: int, nodes: int) -> None:
    assert loss(TREE, torch.zeros(1, 13), soft(TREE, node)).item() == pytest.approx(nodes * LN2, abs=1e-6)
    if node == 0:
        assert loss(TREE, torch.zeros(1, 13), torch.tensor([0])).item() == pytest.approx(nodes * LN2, abs=1e-6)


def test_gradient_of_an_imprecise_label_leaves_the_classes_alone() -> None:
    logits = torch.randn(1, 13, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(TREE, logits, soft(TREE, A)).sum(), logits)
    assert (gradient[0, :10] == 0).all()
    assert gradient[0, B] > 0  # pushed down
    assert gradient[0, A] < 0
    assert gradient[0, ROOT] < 0


def test_unlabelled_samples_have_neither_loss_nor_gradient() -> None:
    logits = torch.randn(2, 13, requires_grad=True)
    for labels in (torch.tensor([-1, 3]), torch.cat([torch.zeros(1, 10), soft(TREE, 3)])):
        values = loss(TREE, logits, labels)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert values[0] == 0
        assert (gradient[0] == 0).all()
        assert (gradient[1] != 0).any()


@pytest.mark.parametrize("hierarchy", [TREE, DEEP, Hierarchy.flat(4)])
def test_loss_equals_plain_loops(hierarchy: Hierarchy) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, len(hierarchy), generator=generator, dtype=torch.float64)
    for node in range(len(hierarchy)):
        above, todo = {node}, [node]
        while todo:
            for parent in hierarchy.parents[todo.pop()]:
                above.add(parent)
                todo.append(parent)
        masked = above | {v for v, ps in enumerate(hierarchy.parents) if set(ps) & (above - {node})}
        expected = 0.0
        for v in masked:
            p = 1 / (1 + math.exp(-logits[0, v].item()))
            expected -= math.log(p if v in above else 1 - p)
        assert loss(hierarchy, logits, soft(hierarchy, node)).item() == pytest.approx(expected, rel=1e-9)


def test_label_of_a_group_with_one_member_is_that_of_the_member() -> None:
    hierarchy = Hierarchy.of({"X": {"Y": ["p", "q"]}, "Z": ["r", "s"]}, list("pqrs"))
    group, member = (next(v for v in range(4, 8) if len(hierarchy.path(v)) == depth) for depth in (2, 3))
    logits = torch.zeros(1, len(hierarchy), requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(hierarchy, logits, soft(hierarchy, group)).sum(), logits)
    assert gradient[0, member] < 0
    assert (gradient[0, :4] == 0).all()


def test_flat_hierarchy_is_one_versus_rest() -> None:
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    targets = torch.nn.functional.one_hot(labels, 4).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, :4], targets, reduction="none").sum(1)
    root = torch.nn.functional.softplus(-logits[:, 4])
    assert torch.allclose(loss(Hierarchy.flat(4), logits, labels), expected + root)


def test_class_in_two_groups_has_both_as_ancestors_and_no_false_negatives() -> None:
    logits = torch.zeros(1, len(DIAMOND), requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(DIAMOND, logits, torch.tensor([1])).sum(), logits)
    names = {"l": 0, "both": 1, "r": 2, "top": 3, "L": 4, "R": 5}
    assert {name for name, node in names.items() if gradient[0, node] < 0} == {"both", "L", "R", "top"}
    assert {name for name, node in names.items() if gradient[0, node] > 0} == {"l", "r"}
    (gradient,) = torch.autograd.grad(loss(DIAMOND, logits, soft(DIAMOND, 4)).sum(), logits)
    assert gradient[0, 5] == 0  # R may be true as well, since it contains "both"


# --- probabilities of the classes


def test_zero_logits_give_halves_by_depth() -> None:
    assert torch.allclose(leaf_log_probabilities(torch.zeros(1, 13), TREE).exp(), torch.full((1, 10), 0.125))
    depths = torch.tensor([4.0, 4, 3, 2, 1])  # edges below the root
    log_p = leaf_log_probabilities(torch.zeros(1, len(DEEP)), DEEP)
    assert torch.allclose(log_p.exp(), 0.5 ** (depths + 1))
    assert not torch.allclose(log_p.softmax(1), torch.full((1, 5), 0.2))


def test_diamond_of_two_halves_and_certainty_is_three_quarters() -> None:
    logits = torch.zeros(1, len(DIAMOND), dtype=torch.float64)
    logits[0, 1], logits[0, 3] = 40.0, 40.0  # "both" and the root are certain
    p = leaf_log_probabilities(logits, DIAMOND).exp()
    assert p[0, 1].item() == pytest.approx(0.75, abs=1e-9)
    assert p[0, 0].item() == pytest.approx(0.25, abs=1e-9)


def test_probabilities_of_deep_or_certain_nodes_stay_finite_with_gradients() -> None:
    for hierarchy in (DEEP, DIAMOND):
        for value in (-200.0, 200.0):
            logits = torch.full((1, len(hierarchy)), value, requires_grad=True)
            log_p = leaf_log_probabilities(logits, hierarchy)
            (gradient,) = torch.autograd.grad(log_p.sum(), logits)
            assert log_p.isfinite().all()
            assert gradient.isfinite().all()


def test_network_without_a_hierarchy_is_refused(refused: object) -> None:
    with refused("Linear", "method=chillax"):  # type: ignore[operator]
        hierarchy_of(torch.nn.Linear(2, 2))
