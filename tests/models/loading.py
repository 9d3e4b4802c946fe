"""What the tests of loading networks share: two calls, a fake of timm, and user code."""

from __future__ import annotations

import types
from typing import Any

import pytest
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.external.common import BuiltModel
from tutelage.models.load import make_model

USER_CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Stores its arguments."""

    def __init__(self, num_classes, image_shape, hidden=3):
        super().__init__()
        self.called_with = (num_classes, image_shape, hidden)
        self.fc = nn.Linear(2, num_classes)


class Inner:
    Net = Net


def keywords_only(*, image_size, in_channels):
    net = nn.Identity()
    net.called_with = (image_size, in_channels)
    return net


def anything(**options):
    net = nn.Identity()
    net.called_with = options
    return net


def passes_on(*, weights=None, **options):
    """As in torchvision: accepts any keyword and passes it to a class that does not."""
    return nn.Linear(4, **options) if weights else takes_only_classes(**options)


def takes_only_classes(num_classes):
    return nn.Linear(4, num_classes)


instance = nn.Linear(2, 3)


def needs_more(num_classes, layers):
    return nn.Identity()


def fails(num_classes):
    raise RuntimeError("no luck today\\nand a second line")


def returns_a_number():
    return 7


class NotAModule:
    pass


number = 3
'''


def load(spec: str, *, shape: tuple[int, int, int] = (1, 8, 8), pretrained: bool = False) -> BuiltModel:
    return make_model(spec, num_classes=5, input_shape=shape, pretrained=pretrained)


def refusal(spec: str, **options: Any) -> str:
    """The one-line error message."""
    with pytest.raises(TutelageError) as exc_info:
        load(spec, **options)
    message = str(exc_info.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def importable(package: str) -> None:
    """Skip the test if the optional package cannot be imported."""
    try:
        __import__(package)
    except Exception as error:
        pytest.skip(f"{package}: {error!r}")


class FakeTimmModel(nn.Module):
    """A model with the attributes of timm models that are read."""

    def __init__(self, num_classes: int, in_chans: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = self.default_cfg = config
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))  # type: ignore[no-any-return]


class FakeTimm(types.ModuleType):
    """A fake of timm that records its calls."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls: list[dict[str, Any]] = []

    def list_models(self) -> list[str]:
        return ["resnet18", "resnet10t", "vit_tiny"]

    def create_model(self, name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        self.calls.append({"name": name, "pretrained": pretrained, **options})
        if name == "resnet10t":
            raise ValueError("no weights\nfor it")
        config = {
            "input_size": (3, 224, 224),
            "fixed_input_size": name == "vit_tiny",
            "mean": (0.3, 0.4, 0.8),
            "std": (0.1, 0.2, 0.3),
        }
        return FakeTimmModel(options.get("num_classes", 9), options["in_chans"], config)
