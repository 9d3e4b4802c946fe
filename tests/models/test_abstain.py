"""The abstention logit: its function, unchanged logits, and rebuilding from a file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.load import make_model
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.abstain import apply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, read_metadata, save_weights

EXAMPLE = torch.zeros(2, 1, 8, 8)


def plain(name: str = "resnet8x0.25") -> nn.Module:
    torch.manual_seed(0)
    return make_model(name, num_classes=4, input_shape=(1, 8, 8)).module.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet8x0.25", "wrn-10-1"])
def test_it_equals_a_classifier_with_one_more_row(name: str, images: Tensor) -> None:
    network = plain(name)
    wider = copy.deepcopy(network)
    keys = list(network.state_dict())
    apply(network, EXAMPLE)
    row = network.fc.abstain  # type: ignore[union-attr]
    assert isinstance(row, nn.Linear)
    linear = network.fc
    assert isinstance(linear, nn.Linear)
    wider.fc = nn.Linear(linear.in_features, 5)
    wider.fc.weight = nn.Parameter(torch.cat([linear.weight, row.weight]))
    wider.fc.bias = nn.Parameter(torch.cat([linear.bias, row.bias]))
    outputs = Tapped(network).tap(images, ("logits", "abstain"))
    torch.testing.assert_close(torch.cat([outputs["logits"], outputs["abstain"]], 1), wider(images))
    assert outputs["abstain"].shape == (5, 1)
    assert [*keys, "fc.abstain.weight", "fc.abstain.bias"] == list(network.state_dict())


def test_logits_do_not_change(images: Tensor) -> None:
    network = plain()
    before = network(images)
    assert torch.equal(apply(network, EXAMPLE)(images), before)


def test_the_row_is_initialised_like_a_linear_layer() -> None:
    rows = []
    for seed in (1, 1, 2):
        network = plain()
        torch.manual_seed(seed)
        rows.append(apply(network, EXAMPLE).get_parameter("fc.abstain.weight").detach())
    torch.manual_seed(1)
    assert torch.equal(rows[0], nn.Linear(rows[0].shape[1], 1).weight)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_declared_roles_remain() -> None:
    network = apply(plain("wrn-10-1"), EXAMPLE)
    assert {"stage1", "abstain"} <= Tapped(network).trace(EXAMPLE).taps.keys()
    assert "abstain" not in type(network).roles  # type: ignore[operator]


def test_it_is_rebuilt_from_a_file(images: Tensor, tmp_path: Path) -> None:
    network = apply(plain(), EXAMPLE)
    assert applied_operations(network) == [{"operation": "abstain"}]
    save_weights(tmp_path / "file", network, {"surgery": applied_operations(network)})
    rebuilt = reapply(plain(), read_metadata(tmp_path / "file")["surgery"], EXAMPLE)
    load_weights(tmp_path / "file", rebuilt)
    roles = ("logits", "abstain")
    expected, actual = (Tapped(model.eval()).tap(images, roles) for model in (network, rebuilt))
    assert all(torch.equal(expected[role], actual[role]) for role in roles)
    assert applied_operations(rebuilt) == applied_operations(network)


def test_a_deep_copy_is_independent(images: Tensor) -> None:
    network = apply(plain(), EXAMPLE)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.get_parameter("fc.abstain.bias").add_(1)
    actual, expected = (Tapped(model).tap(images, ("abstain",))["abstain"] for model in (network, copied))
    torch.testing.assert_close(expected, actual + 1)


def test_unsupported_networks_raise() -> None:
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(TutelageError, match=r"nn\.Linear as its last layer"):
        apply(convolutional, EXAMPLE)
    network = apply(plain(), EXAMPLE)
    with pytest.raises(TutelageError, match="already"):
        apply(network, EXAMPLE)
