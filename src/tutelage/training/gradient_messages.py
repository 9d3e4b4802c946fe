"""Averaging gradients over processes while the backward pass computes further ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

MESSAGE_BYTES = 25 * 2**20
"""The size of a message, that of ``DistributedDataParallel``."""


@contextmanager
def averaged_gradients(
    parameters: Sequence[nn.Parameter], world: int, message_bytes: int = MESSAGE_BYTES
) -> Iterator[None]:
    """A context for a backward pass, after which gradients are averaged over processes.

    The last parameters come first, since their gradients do. A message is sent as soon as all of its gradients are
    there, in the same order in each process, so that messages travel during the backward pass. At the end the rest
    follow: those of parameters without a gradient in this pass.

    A wrapper around each model (``DistributedDataParallel``) would not support all update rules: learners in turn,
    frozen parameters, passes that end at a hint layer.

    Args:
        parameters: those that the pass gives gradients. Each process must give the same ones a gradient.
        world: the number of processes.
        message_bytes: the least size of a message, the last one excepted.
    """
    messages = _divided(parameters, message_bytes)
    missing = [len(message) for message in messages]
    sent: list[tuple[list[Tensor], Tensor, dist.Work | None]] = []

    def send() -> None:
        gradients = [parameter.grad for parameter in messages[len(sent)] if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) if gradients else torch.empty(0)
        sent.append((gradients, flat, dist.all_reduce(flat, async_op=True) if gradients else None))

    @torch.no_grad()
    def ready(number: int, parameter: nn.Parameter) -> None:
        missing[number] -= 1
        while len(sent) < len(messages) and not missing[len(sent)]:
            send()

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(ready, number))  # type: ignore[no-untyped-call]
        for number, message in enumerate(messages)
        for parameter in message
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        while len(sent) < len(messages):
            send()
        for gradients, flat, work in sent:
            if work is not None:
                work.wait()
                parts = torch.split(flat.div_(world), [gradient.numel() for gradient in gradients])
                for gradient, part in zip(gradients, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))


def _divided(parameters: Sequence[nn.Parameter], message_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters that are trained, the last ones first, in groups of one dtype and of ``message_bytes`` at least."""
    groups: list[list[nn.Parameter]] = []
    unfinished: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in reversed(parameters):
        if not parameter.requires_grad:
            continue
        if parameter.dtype not in unfinished:
            unfinished[parameter.dtype] = []
            groups.append(unfinished[parameter.dtype])
        group = unfinished[parameter.dtype]
        group.append(parameter)
        if sum(member.nbytes for member in group) >= message_bytes:
            del unfinished[parameter.dtype]
    return groups
