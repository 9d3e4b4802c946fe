"""Built-in networks by name, and errors for unknown names."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest
import torch

from tutelage.data.modality import Tokens
from tutelage.errors import TutelageError
from tutelage.models import zoo
from tutelage.models.networks.resnet import ResNet
from tutelage.models.networks.wrn import WRN


@pytest.mark.parametrize(
    ("name", "kind", "blocks", "channels"),
    [
        ("resnet8", ResNet, 3, 16),
        ("resnet20", ResNet, 9, 16),
        ("resnet8x4", ResNet, 3, 64),
        ("resnet14x0.5", ResNet, 6, 8),
        ("wrn-10-2", WRN, 3, 16),
        ("wrn-16-1", WRN, 6, 16),
    ],
)
def test_names_select_networks(name: str, kind: type[ResNet | WRN], blocks: int, channels: int) -> None:
    network = zoo.build(name, num_classes=6, input_shape=(1, 8, 8))
    assert isinstance(network, kind)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    assert network.conv1.out_channels == channels
    assert sum(key.endswith("conv2.weight") for key in network.state_dict()) == blocks


@pytest.mark.parametrize("family", zoo.families().values(), ids=zoo.families())
def test_each_example_matches_exactly_one_family(family: zoo.Family) -> None:
    for example in family.examples:
        assert [other for other in zoo.families().values() if other.pattern.fullmatch(example)] == [family]
    assert family.paper
    assert "\n" not in family.description
    of_texts = "vocabulary" in inspect.signature(family.builder).parameters
    inputs: dict[str, Any] = (
        {"modality": Tokens(50), "input_shape": (12,)} if of_texts else {"input_shape": (3, 32, 32)}
    )
    with torch.device("meta"):  # no memory, no time
        for example in family.examples:
            zoo.build(example, num_classes=10, **inputs)


def test_families_of_one_method_are_built_by_name() -> None:
    assert type(zoo.build("barcode8", num_classes=10, input_shape=(1, 24, 192))).__module__.startswith(
        "tutelage.methods.barcode."
    )
    assert {"resnet", "wrn", "dcgan", "mlp_gan", "barcode"} <= set(zoo.families())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet-20", "resnet20"),
        ("ResNet56", "resnet56"),
        ("wrn_40_2", "wrn-40-2"),
        ("resnet8x", "resnet8x4"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(TutelageError) as exc_info:
        zoo.build(name, num_classes=10, input_shape=(3, 32, 32))
    message = str(exc_info.value)
    assert message.startswith(f"unknown model {name!r}; did you mean {suggestion!r}?")
    assert all(form in message for form in ("module:attr", "timm/NAME", "hf/NAME"))
    assert "\n" not in message


@pytest.mark.parametrize(("name", "text"), [("resnet18", "14 and 20"), ("wrn-18-2", "16 and 22")])
def test_invalid_depths_raise(name: str, text: str) -> None:
    with pytest.raises(TutelageError, match=text):
        zoo.build(name, num_classes=10, input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    "name",
    ["resnet8x100000000", "resnet60000002", "wrn-16-9999", "resnet8x" + "9" * 5000, "mlp-ganx9999", "resnet110x500.0"],
)
def test_too_large_networks_raise_immediately(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(TutelageError, match=r"too large|would have") as exc_info:
        zoo.build(name, num_classes=10, input_shape=(3, 32, 32))
    assert time.monotonic() - start < 5
    assert len(str(exc_info.value)) < 300


def test_the_size_check_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    first = zoo.build("resnet8", num_classes=10, input_shape=(3, 32, 32))
    torch.manual_seed(1)
    expected = ResNet(8, 10, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), expected.parameters(), strict=True))
