"""The MaxDropout layer, which sets the most active units to 0: Santos et al. 2020, arXiv 2007.13723."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.outputs import at_least_float32, first_tensor
from tutelage.models.roles import Tap
from tutelage.models.tapped import Tapped


def dominant(activations: Tensor, rate: float | Tensor) -> Tensor:
    """Which units are dominant: x - min x > (1 - r) (max x - min x), with the extremes of the whole tensor.

    Args:
        activations: x, any shape, not empty.
        rate: r in [0, 1], a threshold on values, not a share of units.

    Returns:
        Bool, of the same shape. No unit of a constant tensor is dominant, and none with r = 0.
    """
    values = at_least_float32(activations.detach())
    low, high = values.aminmax()
    return values - low > (1 - rate) * (high - low)


def max_dropout(activations: Tensor, rate: float | Tensor) -> Tensor:
    """Set the dominant units of x to 0; the others keep their values and their gradients.

    Args:
        activations, rate: as in ``dominant``.
    """
    return activations.masked_fill(dominant(activations, rate), 0.0)


class MaxDropout(nn.Module):
    """``max_dropout`` in train mode and the identity in eval mode, for use after a non-negative activation.

    The dropped units depend on the whole batch, so that the effect of a rate depends on the sizes of batch and map and
    on the largest value: see ``share``. With several processes, each uses its own extremes.

    Args:
        rate: r in [0, 1].
        random_rate: whether each pass draws its rate from U(0, r), as in the paper's algorithm [from memory]; the
            authors' code uses r.
        active_in_eval: whether to drop units in eval mode too, where the output for a sample then depends on the others
            in its batch. The authors' code does so by mistake; for replication only.

    Attributes:
        dropped, total: () int64, the numbers of units set to 0 and of all units since the layer was created; not in its
            state.
    """

    dropped: Tensor
    total: Tensor

    def __init__(self, rate: float = 0.3, *, random_rate: bool = False, active_in_eval: bool = False) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise TutelageError(f"the rate of MaxDropout must be in [0, 1], got {rate}; 0.3 is usual")
        self.rate, self.random_rate, self.active_in_eval = rate, random_rate, active_in_eval
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("total", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, activations: Tensor) -> Tensor:
        """Any shape, the batch first, to the same shape and dtype."""
        if not (self.training or self.active_in_eval):
            return activations
        rate: float | Tensor = self.rate
        if self.random_rate:
            rate = rate * torch.rand((), device=activations.device)
        mask = dominant(activations, rate)
        self.dropped += mask.sum()
        self.total += mask.numel()
        return activations.masked_fill(mask, 0.0)

    @property
    def share(self) -> float:
        """The share of units that were set to 0, in [0, 1]; NaN before the first pass."""
        return float(self.dropped / self.total)

    def extra_repr(self) -> str:
        """The settings that ``print`` displays."""
        return f"rate={self.rate}, random_rate={self.random_rate}, active_in_eval={self.active_in_eval}"


Make = Callable[[], MaxDropout]


@contextmanager
def after_stages(student: Tapped, make: Make) -> Iterator[Mapping[str, MaxDropout]]:
    """A context in which each stage of a traced network is followed by a MaxDropout layer; yields the layers by role.

    The layers are children of ``student``, not of its network, whose keys and ``nn.Sequential``s do not change. They
    are moved, copied and switched between train and eval mode with ``student``.

    Raises:
        TutelageError: the network has no stages.
    """
    if not student.stages:
        raise TutelageError(
            f"{type(student.module).__name__} has no stages for MaxDropout to follow; it has "
            f'{", ".join(student.taps)}. Name layers, for example roles={{"stage1": "layer1"}}, or use where=dropout'
        )
    layers = {role: make() for role in student.stages}
    student.max_dropout = nn.ModuleList(layers.values())
    handles = []
    try:
        for role, layer in layers.items():
            tap = student.taps[role]
            module = student.module.get_submodule(tap.layer)
            register = module.register_forward_pre_hook if tap.of_input else module.register_forward_hook
            handles.append(register(_Hook(role, tap, layer)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()
        del student.max_dropout


@contextmanager
def replace_dropout(student: Tapped, make: Make) -> Iterator[Mapping[str, MaxDropout]]:
    """A context in which a MaxDropout layer replaces each ``nn.Dropout`` of the network; yields the layers by name.

    Raises:
        TutelageError: the network has no ``nn.Dropout``.
    """
    network = student.module
    modules = network.named_modules(remove_duplicate=False)
    dropouts = {name: module for name, module in modules if isinstance(module, nn.Dropout) and name}
    if not dropouts:
        raise TutelageError(
            f"{type(network).__name__} has no nn.Dropout for MaxDropout to replace; use where=stages, "
            "or a network with such layers"
        )
    layers = {name: make() for name in dropouts}
    try:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        yield layers
    finally:
        for name, dropout in dropouts.items():
            network.set_submodule(name, dropout)


class _Hook:
    """A hook that applies a layer to the input or output of a module: to the tensor, or to the first of several.

    It is an object and not a closure, so that a copy of the network runs the copied layer.
    """

    def __init__(self, role: str, tap: Tap, layer: MaxDropout) -> None:
        self.role, self.tap, self.layer = role, tap, layer

    def __call__(self, module: nn.Module, *values: Any) -> Any:
        if not module.training:  # the network alone may be in eval mode, as during tracing
            return None
        value = values[-1]  # the inputs, or in a forward hook the output
        if first_tensor(value) is None:
            raise TutelageError(f"layer {self.tap}, named as {self.role!r}, returns no tensor; name another layer")
        return _in_first(value, self.layer)


def _in_first(value: Any, layer: MaxDropout) -> Any:
    """Apply ``layer`` to the ``first_tensor`` of a value."""
    if isinstance(value, Tensor):
        return layer(value)
    if isinstance(value, Mapping):
        key = next(iter(value))
        return type(value)({**value, key: _in_first(value[key], layer)})  # type: ignore[call-arg]
    values = (_in_first(value[0], layer), *value[1:])
    return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
