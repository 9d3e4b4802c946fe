"""Networks in the styles of common libraries, and functions that trace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tutelage.models.tapped import Tapped


class Residual(nn.Module):
    """A block as in torchvision, whose ReLU module runs twice."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(out)
        return y


class ImageNetResNet(nn.Module):
    """Stem, max-pool, four layers, average pool, fc, with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(4, 4, 1), Residual(4, 4, 1))
        self.layer2 = nn.Sequential(Residual(4, 6, 2), Residual(6, 6, 1))
        self.layer3 = nn.Sequential(Residual(6, 8, 2), Residual(8, 8, 1))
        self.layer4 = nn.Sequential(Residual(8, 10, 2), Residual(10, 10, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        norm_output = self.norm1(x)
        x = x + self.attention(norm_output, norm_output, norm_output)[0]
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """A class token (and registers) before the patches; only the class token is classified."""

    def __init__(self, depth: int = 4, prefix: int = 1, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


class Plus(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) + x
        return y


class ConvMixer(nn.Module):
    """All maps have one resolution; a block is itself a list of layers with weights."""

    def __init__(self, depth: int, width: int = 6) -> None:
        super().__init__()

        def block() -> nn.Sequential:
            spatial = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.GELU(), nn.BatchNorm2d(width))
            return nn.Sequential(Plus(spatial), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


class SharedReLU(nn.Module):
    """One ReLU module runs after every convolution, so that no role can be its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, 2, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.unused = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.relu(conv(x))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def vgg() -> nn.Module:
    layers = [*conv_bn_relu(3, 4), *conv_bn_relu(4, 4), nn.MaxPool2d(2), *conv_bn_relu(4, 6), nn.MaxPool2d(2)]
    end = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]  # a 1x1 map is no stage
    return nn.Sequential(*layers, *conv_bn_relu(6, 8), *end)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)
    )


def fully_convolutional() -> nn.Module:
    """The classifier is a convolution, whose output is averaged."""
    body = [*conv_bn_relu(3, 4), nn.MaxPool2d(2), *conv_bn_relu(4, 6)]
    return nn.Sequential(*body, nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def weight_normed() -> nn.Module:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


INPUTS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def tapped_network(make: Callable[[], nn.Module], roles: Mapping[str, str] | None = None) -> Tapped:
    torch.manual_seed(0)
    return Tapped(make(), MEAN, STD, roles)


def layers_of(model: Tapped, *, preactivations: bool = False) -> dict[str, str]:
    """Role to layer, either without the preactivations or these alone."""
    taps = model.trace(INPUTS).taps
    return {role: str(taps[role]) for role in sorted(taps) if role.startswith("preactivation") == preactivations}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def captured_by_hooks(model: Tapped, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """The inputs or outputs of these layers, copied by separate hooks."""
    activations: dict[str, Tensor] = {}
    handles = []
    for role, text in layers.items():
        layer = model.module.get_submodule(text.removeprefix("input:"))
        if text.startswith("input:"):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _, inputs, role=role: activations.update({role: inputs[0].clone()})
                )
            )
        else:
            handles.append(
                layer.register_forward_hook(lambda _, __, out, role=role: activations.update({role: out.clone()}))
            )
    activations["logits"] = model.module((INPUTS - model.mean) / model.std)
    for handle in handles:
        handle.remove()
    return activations


def sequential_network() -> nn.Sequential:
    """Sequential convolutions, pooling, flattening, a hidden layer; in-place activations."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.BatchNorm1d(24),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(24, 7),
        nn.GELU(),
        nn.Linear(7, 3),
    )


def with_statistics(network: nn.Module) -> nn.Module:
    """With non-trivial statistics and scales."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(len(tensor), generator=generator))
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(len(module.running_mean), generator=generator))
    return network.eval()
