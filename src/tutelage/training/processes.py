"""Training in several processes, which `accelerate launch` starts."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tutelage.errors import TutelageError, one_line
from tutelage.text import value_text
from tutelage.training.gradient_messages import averaged_gradients


@dataclass(frozen=True, slots=True)
class Processes:
    """This process's rank among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device | None = None

    @classmethod
    def current(cls, device: str) -> Processes:
        """Join the processes of ``accelerate launch`` or ``torchrun``, if this is one of several.

        Raises:
            TutelageError: the launcher's environment variables are incomplete or not numbers, or the processes
                cannot connect.
        """
        world = _from_environment("WORLD_SIZE", least=1)
        if world in (None, 1):
            return cls()
        rank = _from_environment("RANK", least=0)
        _from_environment("LOCAL_RANK", least=0)
        if rank is None or rank >= world:
            raise TutelageError(f"WORLD_SIZE is {world} and RANK is {os.environ.get('RANK')!r}; {_REMEDY}")
        from accelerate import PartialState

        try:
            state = PartialState(cpu=device == "cpu")
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            PartialState._reset_state()  # a singleton, which is incomplete now
            raise TutelageError(
                f"cannot join the {world} processes of WORLD_SIZE: {one_line(error)}; {_REMEDY}"
            ) from error
        atexit.register(_leave)
        if state.num_processes != world:
            raise TutelageError(f"WORLD_SIZE is {world}, but {state.num_processes} processes have joined; {_REMEDY}")
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes; NaN or infinite if it is in any of them."""
        if self.world == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor / self.world

    def total(self, *counts: int) -> list[int]:
        """Each count's sum over processes."""
        if self.world == 1:
            return list(counts)
        summed = torch.tensor(counts, device=self.device)
        dist.all_reduce(summed)
        totals: list[int] = summed.tolist()
        return totals

    def averaged_gradients(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """A context for a backward pass, after which gradients are averaged over processes."""
        return averaged_gradients(parameters, self.world) if self.world > 1 else nullcontext()

    @contextmanager
    def shared_statistics(self, model: nn.Module) -> Iterator[None]:
        """A context in which batch normalization uses the statistics of all processes' batches."""
        with ExitStack() as stack:
            if self.world > 1:
                for module in model.modules():
                    if type(module) in _SHARED:
                        stack.enter_context(_as_class(module, _SHARED[type(module)]))
            yield


def _leave() -> None:
    """Leave the other processes at the end of the program: gloo's threads would abort a program that ends with them."""
    if dist.is_initialized():
        dist.destroy_process_group()


_REMEDY = "start the processes with accelerate launch or torchrun, or unset WORLD_SIZE for a single one"


def _from_environment(name: str, *, least: int) -> int | None:
    """An integer environment variable of the launcher; ``None`` if it is unset or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise TutelageError(
            f"the environment variable {name} is {value_text(text)}, expected a whole number from {least}; {_REMEDY}"
        )
    return int(text)


@contextmanager
def _as_class(module: nn.Module, cls: type[nn.Module]) -> Iterator[None]:
    """A context in which a module has another class, with the same parameters, buffers and keys."""
    own = module.__class__
    module.__class__ = cls
    try:
        yield
    finally:
        module.__class__ = own


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes, concatenated along the first axis, without gradients; shapes must agree."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor.detach()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over processes, with gradients."""
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _Shared(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over all processes, also on CPUs, which ``torch.nn.SyncBatchNorm`` does not support."""

    def _check_input_dim(self, input: Tensor) -> None:
        return

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        sums = all_reduce(torch.cat([values.sum(axes), values.new_tensor([values.numel() / self.num_features])]))
        count = sums[-1]
        mean = sums[:-1] / count
        variance = all_reduce((values - mean.view(shape)).square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked or 1)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), rate)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), rate)
        out: Tensor = (values - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Shared,
    nn.BatchNorm2d: _Shared,
    nn.BatchNorm3d: _Shared,
}
