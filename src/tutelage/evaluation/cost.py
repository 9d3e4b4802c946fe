"""What a network costs: parameters, floating-point operations, time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tutelage.ambient import default_settings
from tutelage.models.modes import evaluating

WARM_UP = 5  # forward passes that allocate memory and choose kernels, and are not timed


def parameters(model: nn.Module) -> int:
    """How many numbers are learnt or were; buffers are none, and a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


@default_settings()
def flops(model: nn.Module, image_shape: tuple[int, ...], device: torch.device | str = "cpu") -> int:
    """Floating-point operations of one image's forward pass; a multiply-add is 2 of them.

    Convolutions, matrix products and attention are counted, as ``torch.utils.flop_counter`` does; biases,
    normalisation and other element-wise work are not. (Papers that say FLOPs often mean multiply-adds, which
    are half as many.)

    Args:
        model: maps (B, C, H, W) to logits; it must be on ``device`` already.
        image_shape: (C, H, W); of a generator (latent,).
        device: where to compute.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), _nothing_fused(), counter:
        model(_images(1, image_shape, device))
    return counter.get_total_flops()


@dataclass(frozen=True, slots=True)
class Latency:
    """The time of a forward pass, in milliseconds: the median and the quartiles of the repeats."""

    median: float
    first_quartile: float
    third_quartile: float


@default_settings()
def latency(
    model: nn.Module,
    image_shape: tuple[int, ...],
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    repeats: int = 30,
) -> Latency:
    """Time the forward pass of a batch, after five that are not timed.

    Args:
        model: maps (B, C, H, W) to logits; it must be on ``device`` already.
        image_shape: (C, H, W); of a generator (latent,).
        batch_size: images a pass; the time is that of the whole batch.
        device: where to compute; on a GPU each pass is waited for.
        repeats: how many passes are timed.

    Raises:
        ValueError: fewer than one image or one repeat.
    """
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be 1 or more, got {batch_size} and {repeats}")
    device = torch.device(device)
    images = _images(batch_size, image_shape, device)
    seconds = []
    with evaluating(model), torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            _wait(device)
            start = time.perf_counter()
            model(images)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    timed = torch.tensor(seconds[WARM_UP:], dtype=torch.float64) * 1000
    first, median, third = timed.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Latency(median=median, first_quartile=first, third_quartile=third)


def _images(batch_size: int, image_shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Grey images: random ones would move a generator that a training run may depend on."""
    return torch.full((batch_size, *image_shape), 0.5, device=device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Attention as the matrix products it is made of: the counter takes some fused kernels for free."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # The counter's hooks fire twice on a compiled network; its totals are right.
            warnings.filterwarnings("ignore", message="Using `torch.compile")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
