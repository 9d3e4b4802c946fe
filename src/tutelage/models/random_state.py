"""The global random generators, and networks that draw from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn


def rng_state() -> dict[str, Any]:
    """The state of every global random generator: torch's on CPU and GPUs, NumPy's, Python's."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": random.getstate(),
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Restore every global random generator to a state from ``rng_state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    saved = state["numpy"]
    np.random.set_state(
        ("MT19937", saved["key"].numpy().astype(np.uint32), saved["pos"], saved["has_gauss"], saved["gauss"])
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def rng_state_restored() -> Iterator[None]:
    """A context that restores every global random generator at its end."""
    before = rng_state()
    try:
        yield
    finally:
        restore_rng_state(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context that seeds every global random generator, and restores them at its end."""
    with rng_state_restored():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def is_random(model: nn.Module) -> bool:
    """Whether the network draws random numbers in eval mode too: a submodule says so by an attribute ``is_random``."""
    return any(getattr(module, "is_random", False) for module in model.modules())


def fixed_draws(model: nn.Module, seed: int = 0) -> AbstractContextManager[None]:
    """A context in which the random numbers of a random network depend on the seed alone.

    Those of the caller do not depend on how many the network draws. For other networks it does nothing.
    """
    return seeded(seed) if is_random(model) else nullcontext()
