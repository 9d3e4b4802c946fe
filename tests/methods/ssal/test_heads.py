"""The branches and the joint prediction of ssal, and the loss on groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.ssal.group_labels import GroupCrossEntropy, group_targets
from tutelage.methods.ssal.heads.groups import Branch, GroupHeads, build
from tutelage.models.outputs import Outputs

GROUPS = torch.tensor([[0, 0, 1, 1, 0], [2, 1, 0, 1, 2]])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Given(nn.Module):
    """Returns its input."""

    def forward(self, values: Tensor) -> Tensor:
        return values


def joint(z: Tensor, branches: list[Tensor], gamma: float) -> Tensor:
    return GroupHeads([Given(), Given()], GROUPS, gamma)(z, branches).softmax(1)  # type: ignore[no-any-return]


def test_joint_prediction_is_the_renormalised_product() -> None:
    z, branches = logits(6, 5), [logits(6, 2, seed=1), logits(6, 3, seed=2)]
    actual = joint(z, branches, 0.3)
    for row in range(6):
        scores = []
        for k in range(5):
            score = math.exp(z[row, k]) / sum(math.exp(value) for value in z[row])
            for branch, groups in zip(branches, GROUPS.tolist(), strict=True):
                probability = math.exp(branch[row, groups[k]]) / sum(math.exp(value) for value in branch[row])
                score *= probability**0.3
            scores.append(score)
        expected = torch.tensor([score / sum(scores) for score in scores], dtype=torch.float64)
        torch.testing.assert_close(actual[row], expected)


def test_uniform_branches_and_gamma_0_change_nothing() -> None:
    z = logits(6, 5)
    torch.testing.assert_close(joint(z, [torch.zeros(6, 2), torch.ones(6, 3)], 0.5), z.softmax(1))
    torch.testing.assert_close(joint(z, [logits(6, 2), logits(6, 3)], 0.0), z.softmax(1))


def test_a_certain_branch_decides_the_group() -> None:
    certain = torch.full((6, 2), -1e4, dtype=torch.float64)
    certain[:, 1] = 0
    assert set(joint(logits(6, 5), [certain, logits(6, 3)], 0.3).argmax(1).tolist()) <= {2, 3}


@pytest.mark.parametrize("width", [4, 128])
def test_parameters_of_a_branch(width: int) -> None:
    """Convolutions without bias, each with a batch normalisation."""
    first, later = (Branch(16, 20, width, first=value) for value in (True, False))
    block = 4 * width**2 + 9 * width**2 + 4 * 3 * width**2
    norms = 2 * 11 * width
    linear = 6 * width * 20 + 20
    for branch, kernel in ((first, 25), (later, 9)):
        expected = kernel * 16 * width + 9 * width**2 + block + norms + linear
        assert sum(parameter.numel() for parameter in branch.parameters()) == expected
    assert first.conv1(torch.zeros(2, 16, 8, 8)).shape == (2, width, 4, 4)
    assert later.conv1(torch.zeros(2, 16, 8, 8)).shape == (2, width, 8, 8)
    assert first(torch.zeros(2, 16, 8, 8)).shape == (2, 20)


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"groups": [0, 1, 2]}, ("1 x 4 numbers",)),
        ({"groups": [0, 1, 2, 4]}, ("numbers from 0 to 3",)),
        ({"groups": "0011"}, ("0011",)),
        ({"groups": [0, 0, 1, 1], "gamma": -1.0}, ("gamma", "-1.0")),
        ({"groups": [0, 0, 1, 1], "gamma": math.nan}, ("gamma", "nan")),
        ({"groups": [0, 0, 1, 1], "width": 0}, ("width", "0")),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        build(torch.zeros(2, 4), [torch.zeros(2, 3, 4, 4)], **settings)


def test_a_layer_without_maps_is_refused(refused: Any) -> None:
    with refused("feature map", "(2, 3)"):
        build(torch.zeros(2, 4), [torch.zeros(2, 3)], groups=[0, 0, 1, 1])


# --- the loss


def test_targets_are_the_groups_of_the_labels() -> None:
    labels = torch.tensor([0, 2, -1, 4, 3])
    assert group_targets(labels, GROUPS[0]).tolist() == [0, 1, -1, 0, 1]
    soft = torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.4], [0.0] * 5])
    torch.testing.assert_close(group_targets(soft, GROUPS[1])[:, :3], torch.tensor([[0.3, 0.2, 0.5], [0.0] * 3]))


@pytest.mark.parametrize("row", [0, 1])
def test_loss_is_the_cross_entropy_of_the_groups(row: int, batch_of: Callable[[Tensor], Batch]) -> None:
    groups = GROUPS[row]
    count = int(groups.max()) + 1
    a = logits(4, count).requires_grad_()
    labels = torch.tensor([0, 4, -1, 2])
    term = GroupCrossEntropy("branch1", groups)
    value = term(Outputs(None, {"branch1": a}), None, batch_of(labels))
    for sample, label in enumerate(labels.tolist()):
        probabilities = [math.exp(v) for v in a[sample].tolist()]
        expected = 0.0 if label < 0 else -math.log(probabilities[int(groups[label])] / sum(probabilities))
        assert value[sample].item() == pytest.approx(expected)
    soft = torch.zeros(4, 5).scatter_(1, labels.clamp_min(0)[:, None], 1.0)
    soft[2] = 0
    torch.testing.assert_close(term(Outputs(None, {"branch1": a}), None, batch_of(soft)), value)
    value.sum().backward()
    assert a.grad is not None
    assert [bool(gradient.any()) for gradient in a.grad] == [True, True, False, True]
    assert (term.roles, term.teacher_roles, term.reads_labels) == (("branch1",), (), True)


@pytest.mark.parametrize("row", [0, 1])
def test_loss_of_equal_logits_is_the_logarithm_of_the_number_of_groups(
    row: int, batch_of: Callable[[Tensor], Batch]
) -> None:
    count = int(GROUPS[row].max()) + 1
    outputs = Outputs(None, {"a": torch.zeros(3, count)})
    value = GroupCrossEntropy("a", GROUPS[row])(outputs, None, batch_of(torch.tensor([0, 1, 2])))
    torch.testing.assert_close(value, torch.full((3,), math.log(count)))
