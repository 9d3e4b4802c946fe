"""A front: a module before a network's first layer that transforms its inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tutelage.models import fronts
from tutelage.models.attach import FRONT, attach_before, input_layer
from tutelage.models.surgery import append_operation


def apply(network: nn.Module, example: Tensor, *, kind: str, **settings: Any) -> nn.Module:
    """Attach a front to a network.

    The network's own keys do not change; the keys of the front are under ``front_KIND`` of the network, or of the first
    layer of an ``nn.Sequential``. A second front, of another kind, runs after the first.

    Args:
        network: it is changed.
        example: inputs as the network takes them, (B, ...).
        kind: one of ``tutelage.models.fronts.kinds``.
        settings: of the kind: text, numbers and flat lists of these.

    Raises:
        TutelageError: there is no such kind, its settings are invalid, or the network has a front of this kind already.
    """
    front = fronts.build(kind, example, **settings)
    attach_before(network, input_layer(network), f"{FRONT}{kind}", front)
    append_operation(network, "front", kind=kind, **settings)
    return network
