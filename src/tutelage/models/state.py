"""The tensors of a network: what they must be for it to be trained, compared and saved, and whose they are."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tutelage.errors import TutelageError, one_line
from tutelage.models.modes import eval_mode

Network = TypeVar("Network", bound=nn.Module)


def check_state(who: str, network: nn.Module) -> None:
    """Check that the ``state_dict`` and the buffers are dense tensors with values, and nothing else.

    Args:
        who: the network, for the error.

    Raises:
        TutelageError: an entry is no tensor (``get_extra_state``), has no values yet (a lazy layer, the meta device),
            or is sparse, nested or quantized.
    """
    for key, value in {**network.state_dict(), **dict(network.named_buffers())}.items():
        problem = _problem(value)
        if problem:
            raise TutelageError(f"{who} cannot be trained, compared or saved: {key!r} of its state {problem}")


def _problem(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__} and no tensor; register what it holds as a buffer"
    if is_lazy(value):
        return "has no shape yet; run the network once on a batch"
    if value.is_meta:
        return "is on the meta device and has no values; load its weights first"
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        kind = "quantized" if value.is_quantized else "nested" if value.is_nested else "sparse"
        return f"is a {kind} tensor; make it a dense one"
    return ""


def initialise_lazy_layers(network: Network, example: Tensor) -> Network:
    """The network itself, its lazy layers (``nn.LazyLinear``) initialised by one pass, from torch's global generator.

    Args:
        network: left alone if no layer is lazy; else run in eval mode without gradients.
        example: (B, C, H, W) float32, inputs as the network takes them.

    Raises:
        TutelageError: the network with the lazy layers cannot take the example.
    """
    if not any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        return network
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    except Exception as error:  # whatever somebody else's network does
        raise TutelageError(
            f"the lazy layers of {type(network).__name__} cannot be initialised with images of shape "
            f"{tuple(example.shape[1:])}: {one_line(error)}; give the layers their sizes"
        ) from error
    return network


def copy_network(network: Network, who: str, reason: str) -> Network:
    """A deep copy.

    Args:
        network: what is copied.
        who, reason: the network and what the copy is for, for the error.

    Raises:
        TutelageError: the network cannot be copied, as with the old ``nn.utils.weight_norm``.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever somebody else's class does
        raise TutelageError(f"{who} cannot be copied ({one_line(error).split('. ')[0]}); {reason}") from error


def is_constant(value: Tensor) -> bool:
    """Whether all elements are equal, as those of a new bias or a new normalisation are."""
    return bool((value == value.flatten()[:1]).all())


def same_initial_weights(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks start with the same values of all parameters that are drawn: learn, and are not constant."""
    pairs = [
        (value, there)
        for value, there in zip(network.parameters(), other.parameters(), strict=False)
        if value.requires_grad and there.requires_grad and not is_constant(value.detach())
    ]
    return bool(pairs) and all(value.shape == there.shape and torch.equal(value, there) for value, there in pairs)


def shared_tensors(network: nn.Module, other: nn.Module) -> list[str]:
    """The parameters and buffers of a network, by name, that lie in the same memory as one of another network."""
    there = {_place(tensor) for tensor in (*other.parameters(), *other.buffers())} - {0}
    own = (*network.named_parameters(), *network.named_buffers())
    return [name for name, tensor in own if _place(tensor) in there]


def shared_tensors_error(learner: str, teacher: str, names: list[str]) -> str:
    """The error for a network that learns and one that teaches and have these parameters and buffers in common."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{learner} and {teacher} have parameters or buffers in common ({', '.join(names[:3])}{more}): a teacher is "
        "frozen, and would freeze them in the student; give the student a copy of that part, by copy.deepcopy"
    )


def _place(tensor: Tensor) -> int:
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor made of others has no memory of its own
        return 0


def dtype_hint(network: nn.Module) -> str:
    """The end of an error where a network fails on float32 images: its dtype and the remedy, if it has another one."""
    for tensor in network.parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            return f"; its weights are {dtype} and images are float32, so convert it with network.float()"
    return ""
