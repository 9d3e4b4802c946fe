"""Heads for features of first and second order: MOFS (Wang, Zhang, Huang, Zhang, Fan 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.mofs.pooling import CovariancePooling
from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.capture import capture
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32, first_tensor
from tutelage.models.roles import Tap, add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import applied_operations, declare_inputs, record_operations

LEVELS = ("high", "mid")  # of first order: the last map, and the one before
COVARIANCE, ALL = "covariance", "all"


def head_role(name: str) -> str:
    """The role of the logits (B, classes) of the head ``"mid"``, ``"high"``, ``"covariance"`` or ``"all"``."""
    return f"{name} head"


class FirstOrder(nn.Module):
    """1x1 convolution, batch normalisation, ReLU; 3x3 convolution to twice the channels, the same; pooling.

    Args:
        in_channels: of the map.
        channels: of the first convolution.
        strongest: pool by the maximum, which selects the strongest local part, instead of the mean.
    """

    def __init__(self, in_channels: int, channels: int, *, strongest: bool) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
        )
        self.strongest = strongest
        self.size = 2 * channels

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 2 channels)."""
        maps = self.convolutions(maps)
        return maps.amax((2, 3)) if self.strongest else maps.mean((2, 3))


class SecondOrder(nn.Module):
    """1x1 convolution to D channels, batch normalisation, ReLU; covariance pooling."""

    def __init__(self, in_channels: int, dimension: int, iterations: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(
            nn.Conv2d(in_channels, dimension, 1, bias=False), nn.BatchNorm2d(dimension), nn.ReLU()
        )
        self.pooling = CovariancePooling(dimension, iterations)
        self.size = len(self.pooling.index)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, D (D + 1) / 2)."""
        vectors: Tensor = self.pooling(self.reduction(maps))
        return vectors


class MultiOrder(nn.Module):
    """A network with heads for features of first and second order, whose output is the mean of their probabilities.

    Attributes:
        network: the network, without its classifier.
        parts: each head's name to the module from a map of the network to a vector.
        classifiers: each head's name to the module from its vector to logits; ``"all"`` reads all vectors.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Mapping[str, Tap],
        parts: Mapping[str, FirstOrder | SecondOrder],
        classes: int,
    ) -> None:
        super().__init__()
        self.network, self.parts, self.classifiers = network, nn.ModuleDict(parts), nn.ModuleDict()
        declare_inputs(self, [network])
        for name, part in parts.items():
            self.classifiers[name] = nn.Linear(part.size, classes) if name == COVARIANCE else _mlp(part.size, classes)
        if len(parts) > 1:
            self.classifiers[ALL] = nn.Linear(sum(part.size for part in parts.values()), classes)
        self._taps, self._values = dict(taps), dict[str, Any]()
        for level, tap in taps.items():
            layer, store = network.get_submodule(tap.layer), _Store(self._values, level, tap.overwritten)
            if tap.of_input:
                layer.register_forward_pre_hook(store.input)
            else:
                layer.register_forward_hook(store.output)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to the logarithm of the mean over heads of softmax(z), (B, classes)."""
        try:
            self.network(inputs)
            maps = {level: tap.read(level, self._values[level]) for level, tap in self._taps.items()}
        finally:
            self._values.clear()
        vectors = {name: part(maps[name if name in LEVELS else "high"]) for name, part in self.parts.items()}
        logits = [self.classifiers[name](vector) for name, vector in vectors.items()]
        if ALL in self.classifiers:
            logits.append(self.classifiers[ALL](torch.cat([at_least_float32(v) for v in vectors.values()], 1)))
        log_probabilities = torch.stack([at_least_float32(z).log_softmax(1) for z in logits])
        return log_probabilities.logsumexp(0) - math.log(len(logits))


def _mlp(size: int, classes: int) -> nn.Sequential:
    width = size // 2
    return nn.Sequential(nn.Linear(size, width), nn.BatchNorm1d(width), nn.ELU(), nn.Linear(width, classes))


class _Store:
    """A hook that stores a layer's output, or its input, while the whole network runs."""

    def __init__(self, values: dict[str, Any], level: str, overwritten: bool) -> None:
        self.values, self.level, self.overwritten = values, level, overwritten

    def output(self, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        self.values[self.level] = tensor.clone() if self.overwritten and tensor is not None else output

    def input(self, _layer: nn.Module, inputs: Any) -> None:
        self.values[self.level] = inputs


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    layers: Sequence[str],
    channels: int = 512,
    dimension: int = 256,
    iterations: int = 5,
    orders: str = "both",
) -> MultiOrder:
    """Replace a network's classifier by heads for features of first and second order.

    Every head has its own logits with the role ``head_role(name)``. The network's own layers get names under
    ``network``; its roles remain.

    Args:
        network: inputs to logits (B, classes), with an ``nn.Linear`` as its last layer; it is changed.
        example: inputs as the network takes them, (B, ...).
        layers: the layer of the last map, and that of the map before, if the network has it; ``"input:NAME"`` is the
            input of a layer.
        channels: of the first convolution of first-order heads, at most those of the map; the second has twice as many.
        dimension: D of the covariance, at most the channels of the map.
        iterations: T of the square root.
        orders: "first", "second" or "both".

    Raises:
        TutelageError: the network has no such classifier or layer, or a layer returns no map.
    """
    if orders not in ("first", "second", "both") or not 1 <= len(layers) <= len(LEVELS):
        raise TutelageError(f"MOFS has heads of order first, second or both on 1 or 2 layers, got {orders!r}, {layers}")
    classifier = find_classifier(network, example)
    classes = get_layer(network, classifier, nn.Linear).out_features
    roles = find_roles(network, example, parse_roles(network, declared_roles(network)))
    named = find_roles(network, example, parse_roles(network, dict(zip(LEVELS, layers, strict=False))))
    taps = {level: named[level] for level in LEVELS if level in named}
    with eval_mode(network), torch.no_grad():
        _, values = capture(lambda: network(example), network, taps, stop=True)
    maps = {level: tap.read(level, values[level]) for level, tap in taps.items()}
    for level, value in maps.items():
        if value.ndim != 4:
            raise TutelageError(
                f"MOFS pools maps (B, C, H, W), and layer {taps[level].layer!r} of {type(network).__name__} returns "
                f"{tuple(value.shape)}; name another layer as its stage"
            )
    parts: dict[str, FirstOrder | SecondOrder] = {}
    for level in reversed(taps) if orders != "second" else ():
        width = maps[level].shape[1]
        parts[level] = FirstOrder(width, min(channels, width), strongest=level == "mid")
    if orders != "first":
        width = maps["high"].shape[1]
        parts[COVARIANCE] = SecondOrder(width, min(dimension, width), iterations)
    operations = applied_operations(network)
    network.set_submodule(classifier, nn.Identity())
    whole = MultiOrder(network, taps, parts, classes)
    whole.train(network.training).to(example.device)
    for role, tap in roles.items():
        add_role(whole, role, _below(tap))
    for name in whole.classifiers:
        add_role(whole, head_role(name), f"classifiers.{name}")
    settings = {"layers": list(layers), "channels": channels, "dimension": dimension, "iterations": iterations}
    record_operations(whole, [*operations, {"operation": "mofs", **settings, "orders": orders}])
    return whole


def _below(tap: Tap) -> str:
    """The tap's text for the network that contains the tapped one as ``network``."""
    prefix, layer = ("input:" if tap.of_input else ""), f"network.{tap.layer}" if tap.layer else "network"
    return prefix + layer
