"""The layers of any network in their order, for learning rates that depend on the depth."""

from __future__ import annotations

from torch import nn

SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the input to the output.

    A layer is a child of the network, or of a sequence (``nn.Sequential``, ``nn.ModuleList``, ``nn.ModuleDict``) that
    is reached from the network through children which contain a sequence of blocks. So a residual block is one layer,
    and so is a block of a transformer; a norm between layers belongs to the layer before it, and a parameter beside
    layers, such as a class token, to the first layer. Modules are assumed to be registered in the order in which they
    run.
    """
    beside, separate = _layers(network, expand=True)
    joined: list[list[nn.Parameter]] = []
    for parameters in separate:
        if joined and all(parameter.ndim <= 1 for parameter in parameters):
            joined[-1] += parameters
        else:
            joined.append(list(parameters))
    return [beside + joined[0], *joined[1:]] if joined else [beside]


def _layers(module: nn.Module, *, expand: bool) -> tuple[list[nn.Parameter], list[list[nn.Parameter]]]:
    """The parameters beside the layers of a module, and the parameters of each of its layers."""
    if not expand and not isinstance(module, SEQUENCES) and not _has_blocks(module):
        parameters = list(module.parameters())
        return [], [parameters] if parameters else []
    beside = list(module.parameters(recurse=False))
    separate: list[list[nn.Parameter]] = []
    for child in module.children():
        beside_inner, inner = _layers(child, expand=False)
        beside += beside_inner
        separate += inner
    return beside, separate


def _has_blocks(module: nn.Module) -> bool:
    """Whether it contains a sequence of blocks: composite modules of one class."""
    return any(_is_sequence_of_blocks(inner) for inner in module.modules())


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    children = list(module.children())
    return (
        isinstance(module, SEQUENCES)
        and len({type(child) for child in children}) == 1
        and not isinstance(children[0], SEQUENCES)
        and any(True for _ in children[0].children())
    )


def layer_factors(network: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """By parameter the factor decay^(n - 1 - i), its layer being number i of n, counted from 0: 1 for the last layer.

    A parameter that several layers share belongs to the last of them.
    """
    by_layer = layers(network)
    last = len(by_layer) - 1
    return {parameter: decay ** (last - number) for number, layer in enumerate(by_layer) for parameter in layer}
