"""A module before a network's first layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tutelage.models import fronts
from tutelage.models.attach import attach_before, input_layer
from tutelage.models.surgery import append_operation


def apply(network: nn.Module, example: Tensor, *, kind: str, **settings: Any) -> nn.Module:
    """Let the network be given what a front makes of its inputs.

    The network's own keys stay what they are; those of the front lie under ``front_KIND`` of the network, or of the
    first layer of an ``nn.Sequential``. A second front of another kind stands behind the first.

    Args:
        network: it is changed.
        example: inputs as it takes them.
        kind: a module of ``tutelage.models.fronts``.
        settings: of the kind: text, numbers and flat lists of them.

    Raises:
        TutelageError: there is no such kind, its settings do not fit, or the network has such a front already.
    """
    front = fronts.build(kind, example, **settings)
    attach_before(network, input_layer(network), f"front_{kind}", front)
    append_operation(network, "front", kind=kind, **settings)
    return network
