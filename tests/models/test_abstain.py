"""An output more beside the classifier: which function it is, what it leaves alone, and the way through a file."""

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
def test_it_is_a_classifier_of_one_row_more(name: str, images: Tensor) -> None:
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
    given = Tapped(network).tap(images, ("logits", "abstain"))
    torch.testing.assert_close(torch.cat([given["logits"], given["abstain"]], 1), wider(images))
    assert given["abstain"].shape == (5, 1)
    assert [*keys, "fc.abstain.weight", "fc.abstain.bias"] == list(network.state_dict())


def test_the_answer_stays_what_it_was_to_the_bit(images: Tensor) -> None:
    network = plain()
    before = network(images)
    assert torch.equal(apply(network, EXAMPLE)(images), before)


def test_the_row_is_drawn_as_torch_draws_a_classifiers() -> None:
    rows = []
    for seed in (1, 1, 2):
        network = plain()
        torch.manual_seed(seed)
        rows.append(apply(network, EXAMPLE).get_parameter("fc.abstain.weight").detach())
    torch.manual_seed(1)
    assert torch.equal(rows[0], nn.Linear(rows[0].shape[1], 1).weight)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_named_roles_stay() -> None:
    network = apply(plain("wrn-10-1"), EXAMPLE)
    assert {"stage1", "abstain"} <= Tapped(network).trace(EXAMPLE).taps.keys()
    assert "abstain" not in type(network).roles  # type: ignore[operator]


def test_it_can_be_done_again_from_a_file(images: Tensor, tmp_path: Path) -> None:
    network = apply(plain(), EXAMPLE)
    assert applied_operations(network) == [{"operation": "abstain"}]
    save_weights(tmp_path / "file", network, {"surgery": applied_operations(network)})
    again = reapply(plain(), read_metadata(tmp_path / "file")["surgery"], EXAMPLE)
    load_weights(tmp_path / "file", again)
    roles = ("logits", "abstain")
    there, here = (Tapped(model.eval()).tap(images, roles) for model in (network, again))
    assert all(torch.equal(there[role], here[role]) for role in roles)
    assert applied_operations(again) == applied_operations(network)


def test_a_copy_has_its_own(images: Tensor) -> None:
    network = apply(plain(), EXAMPLE)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.get_parameter("fc.abstain.bias").add_(1)
    here, there = (Tapped(model).tap(images, ("abstain",))["abstain"] for model in (network, copied))
    torch.testing.assert_close(there, here + 1)


def test_networks_it_is_not_for() -> None:
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(TutelageError, match=r"nn\.Linear as its last layer"):
        apply(convolutional, EXAMPLE)
    once = apply(plain(), EXAMPLE)
    with pytest.raises(TutelageError, match="already"):
        apply(once, EXAMPLE)
