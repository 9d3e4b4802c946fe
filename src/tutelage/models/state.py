"""Checks and comparisons of the parameters and buffers of networks."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tutelage.errors import TutelageError, one_line
from tutelage.models.modes import eval_mode

Network = TypeVar("Network", bound=nn.Module)


def check_state(name: str, network: nn.Module) -> None:
    """Check that all entries of the ``state_dict`` and all buffers are dense tensors with values.

    Args:
        name: of the network, for the error message.
        network: any network.

    Raises:
        TutelageError: an entry is not a tensor (``get_extra_state``), has no values yet (a lazy layer, the meta
            device), or is sparse, nested or quantized.
    """
    for key, value in {**network.state_dict(), **dict(network.named_buffers())}.items():
        problem = _problem(value)
        if problem:
            raise TutelageError(f"{name} cannot be trained, compared or saved: {key!r} of its state {problem}")


def _problem(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__} and no tensor; register its content as a buffer"
    if is_lazy(value):
        return "has no shape yet; run the network once on a batch"
    if value.is_meta:
        return "is on the meta device and has no values; load its weights first"
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        kind = "quantized" if value.is_quantized else "nested" if value.is_nested else "sparse"
        return f"is a {kind} tensor; make it a dense one"
    return ""


def initialise_lazy_layers(network: Network, example: Tensor) -> Network:
    """Initialise lazy layers (``nn.LazyLinear``) by one forward pass, from torch's global generator.

    Args:
        network: it runs in eval mode without gradients, and only if it has lazy layers.
        example: float32 inputs as the network takes them, images (B, C, H, W).

    Returns:
        The same network.

    Raises:
        TutelageError: the network fails on the example.
    """
    if not any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        return network
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    except Exception as error:  # a user's network may raise anything
        raise TutelageError(
            f"the lazy layers of {type(network).__name__} cannot be initialised with images of shape "
            f"{tuple(example.shape[1:])}: {one_line(error)}; give the layers their sizes"
        ) from error
    return network


def copy_network(network: Network, name: str, reason: str) -> Network:
    """A deep copy of the network.

    Args:
        network: any network.
        name, reason: the network's name and the end of the message, for the error.

    Raises:
        TutelageError: the network cannot be copied, for example because of the old ``nn.utils.weight_norm``.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # a user's class may raise anything
        raise TutelageError(f"{name} cannot be copied ({one_line(error).split('. ')[0]}); {reason}") from error


def is_constant(value: Tensor) -> bool:
    """Whether all elements are equal, as in a new bias or a new normalisation layer."""
    return bool((value == value.flatten()[:1]).all())


def same_initial_weights(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have equal randomly initialised parameters: trainable ones that are not constant."""
    pairs = [
        (a, b)
        for a, b in zip(network.parameters(), other.parameters(), strict=False)
        if a.requires_grad and b.requires_grad and not is_constant(a.detach())
    ]
    return bool(pairs) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def shared_tensors(network: nn.Module, other: nn.Module) -> list[str]:
    """The names of the parameters and buffers of a network that share memory with those of another network."""
    addresses = {_address(tensor) for tensor in (*other.parameters(), *other.buffers())} - {0}
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [name for name, tensor in tensors if _address(tensor) in addresses]


def shared_tensors_error(learner: str, teacher: str, names: list[str]) -> str:
    """The error message for a student and a teacher that share these parameters and buffers."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{learner} and {teacher} have parameters or buffers in common ({', '.join(names[:3])}{rest}): a teacher is "
        "frozen, and would freeze them in the student; give the student a copy of that part, by copy.deepcopy"
    )


def _address(tensor: Tensor) -> int:
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a wrapper subclass has no storage of its own
        return 0


def dtype_hint(network: nn.Module) -> str:
    """The end of an error message where a network fails on float32 images: its dtype and the remedy, if it differs."""
    for tensor in network.parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            return f"; its weights are {dtype} and images are float32, so convert it with network.float()"
    return ""
