"""Cost of a network: parameters, floating-point operations and latency."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
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

WARM_UP = 5  # untimed forward passes, which allocate memory and choose kernels
PROBES = 8  # inputs on which the operations of a network are counted to see whether they vary


def parameters(model: nn.Module) -> int:
    """Count the parameters, trainable or frozen; buffers are not counted, and a shared tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


@default_settings()
def cost_of(model: nn.Module, example: Tensor, samples: Tensor | None = None) -> dict[str, Any]:
    """Measure a network's parameters, and the operations and latency of a forward pass of one input.

    A network may execute other operations for other inputs, for example if it skips layers. If those of the first 8
    samples and of the example are not all equal, operations and latency are measured on all samples, one at a time.

    Args:
        model: on the device of ``example``.
        example: (1, ...), an input of the network.
        samples: (N, ...), real inputs.

    Returns:
        ``parameters``, ``flops`` (a multiply-add is 2), ``latency_ms`` (the median) and
        ``latency_ms_quartiles`` (the first and third quartiles). If the operations vary, ``flops`` is their mean over
        the samples, rounded, and there are also ``flops_range``, the smallest and the largest, and ``flops_samples``,
        N.
    """
    count = flops(model, example)
    probes = [] if samples is None else [flops(model, sample[None]) for sample in samples[:PROBES]]
    varied: dict[str, Any] = {}
    inputs = [example]
    if samples is not None and any(probe != count for probe in probes):
        counts = [*probes, *(flops(model, sample[None]) for sample in samples[PROBES:])]
        count = round(sum(counts) / len(counts))
        varied = {"flops_range": [min(counts), max(counts)], "flops_samples": len(counts)}
        inputs = [sample[None] for sample in samples]
    measured = latency_over(model, inputs, repeats=max(30, len(inputs)))
    return {
        "parameters": parameters(model),
        "flops": count,
        "latency_ms": measured.median,
        "latency_ms_quartiles": [measured.first_quartile, measured.third_quartile],
        **varied,
    }


@default_settings()
def flops(model: nn.Module, example: Tensor) -> int:
    """Count the floating-point operations of a forward pass; a multiply-add counts as 2.

    Convolutions, matrix products and attention are counted, as ``torch.utils.flop_counter`` does; biases,
    normalisation and other element-wise operations are not. (Papers that report FLOPs often count multiply-adds,
    which are half as many.)

    Args:
        model: on the device of ``example``.
        example: (1, ...), an input of the network.
    """
    # torch's own counter imports the compiler, which takes seconds and is not needed unless it is already imported.
    counter = FlopCounterMode(display=False) if "torch._dynamo" in sys.modules else _Counter()
    with eval_mode(model), torch.no_grad(), _nothing_fused(), counter:
        model(example)
    return counter.get_total_flops()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the same total as ``FlopCounterMode`` for a network that is not compiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether to import the compiler and disable it in ``__torch_dispatch__``."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if function not in flop_registry and function is not torch.ops.prim.device.default:
            with self:  # a composite operation: its parts are counted
                output = function.decompose(*args, **keywords)
            if output is not NotImplemented:
                return output
        output = function(*args, **keywords)
        count = flop_registry.get(function._overloadpacket)
        self._total += 0 if count is None else count(*args, **keywords, out_val=output)
        return output

    def get_total_flops(self) -> int:
        """Return the operations counted so far; a multiply-add counts as 2."""
        return self._total


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of a forward pass in milliseconds: the median and the quartiles over the repeats."""

    median: float
    first_quartile: float
    third_quartile: float


@default_settings()
def latency(model: nn.Module, example: Tensor, repeats: int = 30) -> Latency:
    """Time the forward pass of a batch, after five untimed warm-up passes.

    Args:
        model: on the device of ``example``.
        example: (B, ...), the batch; the latency is that of the whole batch. On a GPU each pass is synchronised.
        repeats: number of timed passes.

    Raises:
        ValueError: the batch is empty, or there is fewer than one repeat.
    """
    if len(example) < 1 or repeats < 1:
        raise ValueError(f"the batch size and repeats must be at least 1, got {len(example)} and {repeats}")
    return latency_over(model, [example], repeats)


@default_settings()
def latency_over(model: nn.Module, inputs: Sequence[Tensor], repeats: int) -> Latency:
    """Time forward passes of several batches in turn, as ``latency`` does; ``repeats`` is the number of all passes."""
    device = inputs[0].device
    seconds = []
    with eval_mode(model), torch.inference_mode():
        for number in range(-WARM_UP, repeats):
            _wait(device)
            start = time.perf_counter()
            model(inputs[number % len(inputs)])
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
    """Compute attention as separate matrix products: the counter does not count some fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # The counter's hooks run twice on a compiled network; its totals are correct.
            warnings.filterwarnings("ignore", message="Using `torch.compile")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
