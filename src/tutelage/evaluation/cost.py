"""What a network costs: parameters, floating-point operations, time."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tutelage.ambient import default_settings
from tutelage.models.modes import eval_mode

WARM_UP = 5  # forward passes that allocate memory and choose kernels, and are not timed


def parameters(model: nn.Module) -> int:
    """How many numbers are learnt or were; buffers are none, and a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


@default_settings()
def cost_of(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """A network's parameters, and the operations and time of a forward pass of one input.

    Args:
        model: on the device of ``example``.
        example: (1, ...), an input as the network takes it.

    Returns:
        ``parameters``, ``flops`` (a multiply-add is 2), ``latency_ms`` (the median) and
        ``latency_ms_quartiles`` (the first and the third).
    """
    taken = latency(model, example)
    return {
        "parameters": parameters(model),
        "flops": flops(model, example),
        "latency_ms": taken.median,
        "latency_ms_quartiles": [taken.first_quartile, taken.third_quartile],
    }


@default_settings()
def flops(model: nn.Module, example: Tensor) -> int:
    """Floating-point operations of a forward pass; a multiply-add is 2 of them.

    Convolutions, matrix products and attention are counted, as ``torch.utils.flop_counter`` does; biases,
    normalisation and other element-wise work are not. (Papers that say FLOPs often mean multiply-adds, which
    are half as many.)

    Args:
        model: on the device of ``example``.
        example: (1, ...), an input as the network takes it.
    """
    # Without the compiler nothing is compiled, and torch's own counter would import it, which takes seconds.
    counter = FlopCounterMode(display=False) if "torch._dynamo" in sys.modules else _Counter()
    with eval_mode(model), torch.no_grad(), _nothing_fused(), counter:
        model(example)
    return counter.get_total_flops()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The total that ``FlopCounterMode`` gives of a network that is not compiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether to import the compiler so as to keep it out of ``__torch_dispatch__``."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function not in flop_registry and function is not torch.ops.prim.device.default:
            with self:  # an operation of others, which are counted
                given = function.decompose(*args, **named)
            if given is not NotImplemented:
                return given
        given = function(*args, **named)
        count = flop_registry.get(function._overloadpacket)
        self._total += 0 if count is None else count(*args, **named, out_val=given)
        return given

    def get_total_flops(self) -> int:
        """Operations so far; a multiply-add is 2."""
        return self._total


@dataclass(frozen=True, slots=True)
class Latency:
    """The time of a forward pass, in milliseconds: the median and the quartiles of the repeats."""

    median: float
    first_quartile: float
    third_quartile: float


@default_settings()
def latency(model: nn.Module, example: Tensor, repeats: int = 30) -> Latency:
    """Time the forward pass of a batch, after five that are not timed.

    Args:
        model: on the device of ``example``.
        example: (B, ...), the batch; the time is that of all of it. On a GPU each pass is waited for.
        repeats: how many passes are timed.

    Raises:
        ValueError: an empty batch or fewer than one repeat.
    """
    if len(example) < 1 or repeats < 1:
        raise ValueError(f"the batch and the repeats must be 1 or more, got {len(example)} and {repeats}")
    device = example.device
    seconds = []
    with eval_mode(model), torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            _wait(device)
            start = time.perf_counter()
            model(example)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    timed = torch.tensor(seconds[WARM_UP:], dtype=torch.float64) * 1000
    first, median, third = timed.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Latency(median=median, first_quartile=first, third_quartile=third)


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
