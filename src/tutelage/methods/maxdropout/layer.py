"""MaxDropout (Santos et al. 2020, arXiv 2007.13723): the most active units of a layer are silenced."""

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
    """Where x - min x > (1 - r) (max x - min x), with the extremes of the whole tensor: batch, channels and space.

    Args:
        activations: x, any shape, not empty.
        rate: r in [0, 1]. It is a threshold on values and no share of units.

    Returns:
        Bool, of the same shape. Nothing of a constant tensor is dominant, and at r = 0 nothing of any.
    """
    values = at_least_float32(activations.detach())
    low, high = values.aminmax()
    return values - low > (1 - rate) * (high - low)


def max_dropout(activations: Tensor, rate: float | Tensor) -> Tensor:
    """x with its dominant units set to 0 and the others as they are: they are not scaled up.

    Gradients pass through what survives. Arguments as of ``dominant``.
    """
    return activations.masked_fill(dominant(activations, rate), 0.0)


class MaxDropout(nn.Module):
    """``max_dropout`` in train mode, the identity in eval mode. It belongs behind a non-negative activation.

    Which units go depends on every sample of the batch, so how strong a rate is depends on the size of the batch, of
    the map and of its largest value: look at ``share``. Each of several processes has its own extremes.

    Args:
        rate: r in [0, 1].
        random_rate: whether each pass draws its rate from U(0, r), as the paper's algorithm does [from memory]; the
            authors' code has r itself.
        active_in_eval: whether units are dropped in eval mode too, where samples then change each other's answers. The
            authors' code does so, by a mistake; for replication alone.

    Attributes:
        dropped, seen: () int64, units set to 0 and units in all, since the layer was made; not in its state.
    """

    dropped: Tensor
    seen: Tensor

    def __init__(self, rate: float = 0.3, *, random_rate: bool = False, active_in_eval: bool = False) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise TutelageError(f"the rate of MaxDropout lies in [0, 1], got {rate}; 0.3 is usual")
        self.rate, self.random_rate, self.active_in_eval = rate, random_rate, active_in_eval
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, activations: Tensor) -> Tensor:
        """Any shape, the batch first, to the same shape and dtype."""
        if not (self.training or self.active_in_eval):
            return activations
        rate: float | Tensor = self.rate
        if self.random_rate:
            rate = rate * torch.rand((), device=activations.device)
        mask = dominant(activations, rate)
        self.dropped += mask.sum()
        self.seen += mask.numel()
        return activations.masked_fill(mask, 0.0)

    @property
    def share(self) -> float:
        """The share of units that were set to 0, in [0, 1]; NaN where none was seen."""
        return float(self.dropped / self.seen)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"rate={self.rate}, random_rate={self.random_rate}, active_in_eval={self.active_in_eval}"


Make = Callable[[], MaxDropout]


@contextmanager
def after_stages(student: Tapped, make: Make) -> Iterator[Mapping[str, MaxDropout]]:
    """Within it, each stage of a traced network ends in a layer of its own, here by role.

    The layers are children of ``student`` and not of its network, whose keys, and whose ``nn.Sequential``s, are left
    alone; so they are moved, copied and put in train and eval mode with it.

    Raises:
        TutelageError: when the network has no stages.
    """
    if not student.stages:
        raise TutelageError(
            f"{type(student.module).__name__} has no stages for MaxDropout to follow; it has "
            f'{", ".join(student.taps)}. Name layers, for instance roles={{"stage1": "layer1"}}, or take where=dropout'
        )
    layers = {role: make() for role in student.stages}
    student.max_dropout = nn.ModuleList(layers.values())
    handles = []
    try:
        for role, layer in layers.items():
            tap = student.taps[role]
            at = student.module.get_submodule(tap.layer)
            register = at.register_forward_pre_hook if tap.of_input else at.register_forward_hook
            handles.append(register(_Hook(role, tap, layer)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()
        del student.max_dropout


@contextmanager
def in_place_of_dropout(student: Tapped, make: Make) -> Iterator[Mapping[str, MaxDropout]]:
    """Within it, a layer of its own stands for each ``nn.Dropout`` of the network, here by that one's name.

    Raises:
        TutelageError: when there is none.
    """
    network = student.module
    own = {name: m for name, m in network.named_modules(remove_duplicate=False) if isinstance(m, nn.Dropout) and name}
    if not own:
        raise TutelageError(
            f"{type(network).__name__} has no nn.Dropout for MaxDropout to replace; take where=stages, "
            "or a network with such layers"
        )
    layers = {name: make() for name in own}
    try:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        yield layers
    finally:
        for name, dropout in own.items():
            network.set_submodule(name, dropout)


class _Hook:
    """Applies a layer to what another takes or gives: to its tensor, or to the first of several.

    An object and no closure, so that a copy of the network runs the copied layer.
    """

    def __init__(self, role: str, tap: Tap, layer: MaxDropout) -> None:
        self.role, self.tap, self.layer = role, tap, layer

    def __call__(self, at: nn.Module, *values: Any) -> Any:
        if not at.training:  # the network may be put in eval mode alone, as while it is traced
            return None
        value = values[-1]  # what it takes, and after that, in a forward hook, what it gives
        if first_tensor(value) is None:
            raise TutelageError(f"layer {self.tap}, named as {self.role!r}, gives no tensor; name another layer")
        return _in_first(value, self.layer)


def _in_first(value: Any, layer: MaxDropout) -> Any:
    """The value with ``layer`` applied to its ``first_tensor``."""
    if isinstance(value, Tensor):
        return layer(value)
    if isinstance(value, Mapping):
        key = next(iter(value))
        return type(value)({**value, key: _in_first(value[key], layer)})  # type: ignore[call-arg]
    first, rest = _in_first(value[0], layer), value[1:]
    return type(value)(first, *rest) if hasattr(value, "_fields") else type(value)((first, *rest))
