"""Weights of a layer that are fixed at zero, in groups of outputs and inputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.surgery import MAX_LENGTH, append_operation


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    layer: str,
    outputs: Sequence[int],
    inputs: Sequence[int],
    keep: Sequence[int],
) -> nn.Module:
    """Fix groups of a layer's weights at zero, in training too.

    The weights are set to 0, and each forward pass multiplies them by a mask of zeros and ones. So their gradient is 0,
    and they remain exactly 0 under weight decay, momentum and averages of weights. The mask is no entry of the
    ``state_dict``, whose keys do not change: the trained weights also fit the network without the operation. A second
    mask of the same layer fixes more weights.

    Args:
        network: it is changed and returned.
        example: not used.
        layer: the name of an ``nn.Linear`` or an ``nn.Conv2d``; not of a subclass, whose forward pass is unknown.
        outputs: the sizes of the groups of outputs (rows of the weights), which follow each other.
        inputs: likewise of the inputs (columns).
        keep: 0 or 1 for each group of outputs and, within it, each group of inputs; 0 fixes the weights at zero.

    Raises:
        TutelageError: there is no such layer, or it has another type, or the groups do not fit its weights.
    """
    modules = dict(network.named_modules())
    if layer not in modules or not layer:
        raise unknown("layer to mask", layer, [name for name, _ in network.named_modules() if name])
    module = modules[layer]
    if not maskable(module):
        raise TutelageError(
            f"layer {layer!r} is a {type(module).__name__}, whose weights cannot be masked; only those of an nn.Linear "
            "or nn.Conv2d itself can"
        )
    mask = _mask(module, layer, list(outputs), list(inputs), list(keep)).to(module.get_parameter("weight"))
    if isinstance(module, Masked):
        module.mask *= mask
    else:
        module.__class__ = MaskedLinear if isinstance(module, nn.Linear) else MaskedConv2d
        module.register_buffer("mask", mask, persistent=False)
    with torch.no_grad():
        module.get_parameter("weight").masked_fill_(mask == 0, 0.0)
    if "torch._dynamo" in sys.modules:  # compiled code ignores the new class
        torch.compiler.reset()
    settings = {"outputs": list(outputs), "inputs": list(inputs), "keep": list(keep)}
    append_operation(network, "mask", layer=layer, **settings)
    return network


class Masked(nn.Module):
    """A layer whose forward pass multiplies its weights by the buffer ``mask``, which is in no file."""

    mask: Tensor

    @torch.no_grad()
    def fix_weights(self) -> None:
        """Become an ordinary layer with the masked weights, for deployment."""
        self.get_parameter("weight").mul_(self.mask)
        self.__class__ = nn.Linear if isinstance(self, nn.Linear) else nn.Conv2d  # type: ignore[assignment]


class MaskedLinear(nn.Linear, Masked):
    """A linear layer with a mask, (outputs, inputs)."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(input, self.weight * self.mask, self.bias)


class MaskedConv2d(nn.Conv2d, Masked):
    """A convolution with a mask, (outputs, inputs of a group, 1, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W')."""
        output: Tensor = self._conv_forward(input, self.weight * self.mask, self.bias)
        return output


def masked_layers(network: nn.Module) -> dict[str, Masked]:
    """The masked layers of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Masked)}


def fixed_zeros(network: nn.Module) -> int:
    """The number of weights that masks fix at zero."""
    layers = masked_layers(network).values()
    return sum(int((layer.mask.expand_as(layer.get_parameter("weight")) == 0).sum()) for layer in layers)


def maskable(module: nn.Module) -> bool:
    """Whether a layer's weights can be masked."""
    return type(module) in (nn.Linear, nn.Conv2d) or isinstance(module, Masked)


def _mask(module: nn.Module, layer: str, outputs: list[int], inputs: list[int], keep: list[int]) -> Tensor:
    """The mask of a layer, with as many axes as its weights."""
    weight = module.get_parameter("weight")
    for name, sizes, size in (("outputs", outputs, weight.shape[0]), ("inputs", inputs, weight.shape[1])):
        if not all(isinstance(group, int) and group > 0 for group in sizes) or sum(sizes) != size:
            raise TutelageError(
                f"layer {layer!r} has {size} {name}; its groups of {name} must be positive sizes that sum to {size}, "
                f"and sum to {sum(sizes)}"
            )
    groups = len(outputs) * len(inputs)
    if len(keep) != groups or set(keep) - {0, 1}:
        raise TutelageError(
            f"the mask of layer {layer!r} needs 0 or 1 for each of {len(outputs)} x {len(inputs)} groups, "
            f"and has {len(keep)} values of {sorted(set(keep))[:3]}"
        )
    if groups > MAX_LENGTH:
        raise TutelageError(
            f"the mask of layer {layer!r} has {groups} groups, and a file holds at most {MAX_LENGTH}; use larger groups"
        )
    grid = torch.tensor(keep).view(len(outputs), len(inputs))
    mask: Tensor = grid.repeat_interleave(torch.tensor(outputs), 0).repeat_interleave(torch.tensor(inputs), 1)
    return mask.view(*mask.shape, *[1] * (weight.ndim - 2))
