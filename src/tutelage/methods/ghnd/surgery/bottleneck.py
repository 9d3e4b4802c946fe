"""A stage of a network replaced by an encoder of few channels, a codec and a decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.methods.ghnd.codec import Codec
from tutelage.methods.ghnd.neural_filter import NeuralFilter
from tutelage.models.modes import eval_mode
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation


class Bottleneck(nn.Module):
    """Encoder, codec and decoder in place of a stage (Matsubara, Levorato 2020).

    All convolutions have 2x2 kernels. Those of the encoder are padded by 1 and each adds a row and a column; those of
    the decoder take them away again, so that (h, w) becomes (h + 4, w + 4) and (h, w).

    Args:
        in_channels, out_channels: of the stage: 64 and 256 in the paper, and then all layers are as there. [inferred]
            for others: the wide layer of the encoder has 4 in_channels, the first two of the decoder in_channels and
            2 in_channels, and the last two out_channels.
        channels: B, the channels that are sent.
        bits: of each value that is sent.

    Attributes:
        filter: a ``NeuralFilter``, which runs before the encoder; ``None`` without one.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int, bits: int = 8) -> None:
        super().__init__()
        if channels < 1:
            raise TutelageError(f"a bottleneck needs a channel or more, got {channels}")
        self.filter: NeuralFilter | None = None
        self.encoder = nn.Sequential(
            *_convolution(in_channels, in_channels, padding=1),
            *_convolution(in_channels, 4 * in_channels, padding=1),
            nn.ReLU(inplace=True),
            *_convolution(4 * in_channels, in_channels, padding=1),
            nn.Conv2d(in_channels, channels, 2, padding=1, bias=False),
        )
        self.codec = Codec(bits)
        self.decoder = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            *_convolution(channels, in_channels),
            *_convolution(in_channels, 2 * in_channels),
            nn.ReLU(inplace=True),
            *_convolution(2 * in_channels, out_channels),
            *_convolution(out_channels, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h, w)."""
        if self.filter is not None:
            self.filter(x)
        decoded: Tensor = self.decoder(self.codec(self.encoder(x)))
        return decoded


def _convolution(in_channels: int, channels: int, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 2, padding=padding, bias=False), nn.BatchNorm2d(channels)]


def apply(network: nn.Module, example: Tensor, *, layer: str, channels: int, bits: int = 8) -> nn.Module:
    """Replace a layer by a ``Bottleneck`` with new weights; the other keys do not change.

    The layer keeps its role. The other roles are those of the network before, since tracing would take the layers of
    the bottleneck, whose maps are a little larger, for stages.

    Args:
        network: it is changed.
        example: inputs as the network takes them, (B, ...).
        layer: the name of a module that maps (B, C, h, w) to (B, C', h, w), such as a stage.
        channels: B, the channels that are sent.
        bits: 8, 16 or 32 for each value that is sent.

    Raises:
        TutelageError: there is no such layer, or it changes the resolution, or runs more than once.
    """
    if layer not in dict(network.named_modules()) or not layer:
        raise unknown("layer to replace by a bottleneck", layer, [name for name, _ in network.named_modules() if name])
    calls: list[tuple[object, object]] = []
    module = network.get_submodule(layer)
    handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise TutelageError(
            f"layer {layer!r} of {type(network).__name__} runs {len(calls)} times; name one that runs once"
        )
    (source, output) = calls[0]
    if not (isinstance(source, Tensor) and isinstance(output, Tensor) and source.ndim == output.ndim == 4):
        raise TutelageError(
            f"layer {layer!r} of {type(network).__name__} does not map one map to another; name a stage"
        )
    if source.shape[2:] != output.shape[2:]:
        raise TutelageError(
            f"layer {layer!r} of {type(network).__name__} maps {tuple(source.shape[2:])} to {tuple(output.shape[2:])}, "
            "and a bottleneck keeps the resolution; name a stage that does, such as the first one"
        )
    roles = find_roles(network, example, parse_roles(network, declared_roles(network)))
    bottleneck = Bottleneck(source.shape[1], output.shape[1], channels, bits).to(output.device, output.dtype)
    network.set_submodule(layer, bottleneck.train(network.training))
    for role, tap in roles.items():
        inside = f"{tap.layer}.".startswith(f"{layer}.") and str(tap) != f"input:{layer}"
        if role.startswith("stage") and inside:
            add_role(network, role, layer)
        elif not inside and not role.startswith("preactivation"):
            add_role(network, role, str(tap))
    append_operation(network, "bottleneck", layer=layer, channels=channels, bits=bits)
    return network
