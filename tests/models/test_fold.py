"""Folding of batch normalisation: the same function, which layers, files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models.branching import Overwriting
from tests.models.networks import ImageNetResNet
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.fold import apply, foldable
from tutelage.models.zoo import build


class Vectors(nn.Module):
    """A linear layer, grouped and one-dimensional convolutions, without biases or affine parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)
        self.sound, self.bn1 = nn.Conv1d(6, 4, 2, bias=False), nn.BatchNorm1d(4)
        self.fc, self.bn2 = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.bn1(self.sound(x.flatten(2)))
        return self.bn2(self.fc(x.mean(2)))  # type: ignore[no-any-return]


class Unfoldable(nn.Module):
    """A layer whose output is read twice, one that runs twice, a norm that runs twice, and one that is first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv1, self.bn1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3, self.conv4, self.both = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.transposed, self.bn5 = nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv6, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.conv7, self.bn7 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.first(x))
        x = x + self.bn1(x)
        x = self.bn2(self.twice(self.twice(x)))
        x = self.both(self.conv3(x)) + self.both(self.conv4(x))
        x = self.batch(self.conv6(self.bn5(self.transposed(x))))
        return self.bn7(F.relu(self.conv7(x))).mean((2, 3))  # type: ignore[no-any-return]


def trained(network: nn.Module, images: Tensor) -> nn.Module:
    """In eval mode, with other norms than a new network has."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def zoo(name: str) -> Callable[[], nn.Module]:
    return lambda: build(name, num_classes=4, input_shape=(3, 32, 32))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet": (zoo("resnet8x0.25"), (3, 32, 32), 7),
    "wide resnet": (zoo("wrn-10-1"), (3, 32, 32), 3),
    "depth-wise": (zoo("mobilenetv2x0.25"), (3, 32, 32), 52),
    "torchvision's style": (ImageNetResNet, (3, 64, 64), 20),
    "in place": (Overwriting, (1, 8, 8), 2),
    "other layers": (Vectors, (3, 6, 6), 3),
}


@pytest.mark.parametrize("case", list(CASES))
def test_outputs_do_not_change(case: str) -> None:
    make, shape, count = CASES[case]
    torch.manual_seed(0)
    images = torch.rand(8, *shape)
    original = trained(make(), images)
    network = apply(copy.deepcopy(original), images)
    expected, actual = original(images).detach(), network(images).detach()
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
    norms = [sum(isinstance(module, _BatchNorm) for module in n.modules()) for n in (original, network)]
    assert norms[0] - norms[1] == count
    network.train()
    if norms[1] == 0:
        torch.testing.assert_close(network(images).detach(), actual)

    # A file rebuilds it, without a look at the graph.
    rebuilt = reapply(make(), applied_operations(network), torch.zeros(2, *shape))
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_outputs_in_float64_are_equal() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    original = trained(build("resnet8x0.25", num_classes=4, input_shape=(3, 32, 32)), images).double()
    network = apply(copy.deepcopy(original), images.double())
    torch.testing.assert_close(network(images.double()), original(images.double()), rtol=1e-12, atol=1e-12)


def test_only_a_single_reader_is_folded() -> None:
    network = Unfoldable().eval()
    assert foldable(network, torch.rand(2, 3, 4, 4)) == []
    before = network.state_dict()
    assert apply(network, torch.rand(2, 3, 4, 4)).state_dict().keys() == before.keys()
    assert applied_operations(network) == [{"operation": "fold", "layers": [], "norms": []}]


def test_frozen_networks_can_be_folded() -> None:
    network = Overwriting().eval().requires_grad_(False)
    assert len(foldable(network, torch.rand(2, 1, 8, 8))) == 2
    apply(network, torch.rand(2, 1, 8, 8))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_names_that_do_not_fit_are_refused(refused: Any) -> None:
    example = torch.rand(2, 3, 6, 6)
    for layers, norms, pieces in (
        (["conv"], [], ("as many layers as normalisations", "1 and 0")),
        (["nowhere"], ["bn"], ("nowhere",)),
        (["conv"], ["nowhere"], ("nowhere",)),
        (["bn"], ["conv"], ("cannot be folded", "Conv2d")),
        (["conv"], ["bn2"], ("5 channels", "has 6")),
    ):
        with refused(*pieces):
            apply(Vectors(), example, layers=layers, norms=norms)
