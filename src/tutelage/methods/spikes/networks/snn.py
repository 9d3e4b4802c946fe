"""Spiking networks of leaky integrate-and-fire neurons for small images."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.spikes.neurons import LIF, RateCoding
from tutelage.models.family import Family

STEPS = 12


class BatchFirst(nn.Module):
    """Spikes (T, B, ...) to (B, T, ...) with the neurons in one axis; its output is the value of a role."""

    def forward(self, trains: Tensor) -> Tensor:
        """See the class."""
        return trains.transpose(0, 1).flatten(2)


class Activity(nn.Module):
    """The number of spikes of each layer for each sample; its output is the value of a role."""

    def forward(self, trains: Sequence[Tensor]) -> Tensor:
        """A list of L spike trains (T, B, ...) to (B, L)."""
        return torch.stack([layer.flatten(2).sum((0, 2)) for layer in trains], 1)


class SpikingNetwork(nn.Module):
    """A feed-forward network of spiking neurons over T time steps; its logits are the counts of output spikes.

    Images become spikes by ``RateCoding``, drawn anew in each pass. Each layer is linear or a convolution, applied in
    each step, and is followed by ``LIF`` neurons, whose potentials begin at 0 in each pass.

    Args:
        layers: from (B, ...) to (B, ...), the first from images, the last to (B, num_classes).
        steps: T.

    Attributes:
        steps: T of images; spike trains may have another number of steps.
        roles: ``spikes`` (B, T, num_classes), of the output; ``hidden_spikes`` (B, T, H), of the last hidden layer;
            ``activity`` (B, L), the spikes of each layer summed over steps and neurons.
    """

    takes_pixels = True
    sequence_roles = ("spikes", "hidden_spikes")
    metrics_part = "snn"

    def __init__(self, layers: Sequence[nn.Module], steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.roles = {"spikes": "spikes", "hidden_spikes": "hidden_spikes", "activity": "activity"}
        self.encoder = RateCoding(steps)
        self.layers = nn.ModuleList(layers)
        self.neurons = nn.ModuleList(LIF() for _ in layers)
        self.spikes, self.hidden_spikes, self.activity = BatchFirst(), BatchFirst(), Activity()

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] (B, C, H, W), or spike trains (B, T, C, H, W), to counts (B, num_classes) from 0 to T."""
        trains = (self.encoder(x) if x.ndim == 4 else x).transpose(0, 1)
        outputs = []
        for layer, neurons in zip(self.layers, self.neurons, strict=True):
            currents = layer(trains.flatten(0, 1)).unflatten(0, (trains.shape[0], -1))
            trains = neurons(currents)
            outputs.append(trains)
        self.activity(outputs)
        self.hidden_spikes(outputs[-2])
        self.spikes(trains)
        return trains.sum(0)


def spiking_network(
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (1, 28, 28),
    hidden: int = 0,
    channels: int = 0,
    steps: int = STEPS,
) -> SpikingNetwork:
    """A spiking network with one hidden layer, or with two convolutions.

    Args:
        num_classes: the number of output neurons.
        image_shape: (C, H, W) of the images.
        hidden: the neurons of the hidden layer.
        channels: c, if ``hidden`` is 0: 3x3 convolutions of stride 2 with c and 2c channels and a linear layer.
        steps: T.

    Raises:
        TutelageError: there is no neuron, or no time step.
    """
    if steps < 1 or max(hidden, channels) < 1:
        raise TutelageError(
            f"a spiking network needs 1 or more neurons and time steps, got {max(hidden, channels)} and {steps}; "
            f"snn64-{STEPS} has 64 hidden neurons and {STEPS} steps"
        )
    if hidden:
        first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), hidden))
        return SpikingNetwork([first, nn.Linear(hidden, num_classes)], steps)
    depth, height, width = image_shape
    size = 2 * channels * math.ceil(height / 4) * math.ceil(width / 4)
    layers = [
        nn.Conv2d(depth, channels, 3, 2, padding=1),
        nn.Conv2d(channels, 2 * channels, 3, 2, padding=1),
        nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes)),
    ]
    return SpikingNetwork(layers, steps)


FAMILY = Family(
    re.compile(r"snn(?:(?P<hidden>[0-9]+)|-conv(?P<channels>[0-9]+))(?:-(?P<steps>[0-9]+))?"),
    spiking_network,
    ("snn16", "snn200", "snn200-25", "snn-conv8"),
    f"spiking network: snn<hidden neurons>, or snn-conv<channels> with two convolutions; -<time steps> ({STEPS})",
    "after Kushawaha et al. 2020, arXiv 2005.00288",
)
