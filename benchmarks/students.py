"""Several students of one batch at once: what could be done beside taking turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from benchmarks.pairs import Numbers, as_json, compare
from benchmarks.setting import as_batches, device, network, pictures, placed, sizes
from tutelage.config import Hardware
from tutelage.training.hardware import autocast, resolve

NUMBER = 4
NETWORKS = ("resnet8x0.5", "resnet20", "wrn-16-2")


def students(short: bool) -> Numbers:
    """Forward and backward of four students: in turns, stacked by ``vmap``, and on a GPU on a stream each.

    Stacked are their parameters, so that each layer is one operation for all of them. ``apart`` is how far, in float32,
    the gradients of the stacked are from those in turns, beside the largest of these.
    """
    found: Numbers = {}
    for size in sizes()[:1] if short else sizes():
        for name in NETWORKS[:1] if short else NETWORKS:
            found[f"{NUMBER} of {name}, batches of {size}"] = _students(name, size, 2 if short else 20)
    return found


def _students(name: str, size: int, rounds: int) -> Numbers:
    data, hardware = pictures(size), resolve(Hardware())
    ((images, labels),) = as_batches(data, size, 1, device())
    nets = [placed(network(name, data, seed), data, hardware).train() for seed in range(NUMBER)]
    stack = _Stack(nets)

    def in_turns() -> None:
        for net in nets:
            net.zero_grad()
            with autocast(hardware):
                logits = net(images)
            cross_entropy(logits.float(), labels).backward()

    def stacked() -> None:
        stack.zero_grad()
        with autocast(hardware):
            logits = stack(images)
        losses = [cross_entropy(of_one.float(), labels) for of_one in logits]
        torch.stack(losses).sum().backward()

    ways: dict[str, Callable[[], object]] = {"in turns": in_turns, "stacked": stacked}
    if device().type == "cuda":
        ways["on streams"] = partial(_on_streams, nets, images, labels, hardware, [torch.cuda.Stream() for _ in nets])
    return as_json(compare(ways, "in turns", rounds)) | {"apart": _apart(nets, stack, images, labels)}


def _on_streams(
    nets: list[Any], images: Tensor, labels: Tensor, hardware: Hardware, streams: list[torch.cuda.Stream]
) -> None:
    for net, stream in zip(nets, streams, strict=True):
        net.zero_grad()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            with autocast(hardware):
                logits = net(images)
            cross_entropy(logits.float(), labels).backward()
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)


class _Stack(nn.Module):
    """Networks of one kind as one, which gives the logits of all, (networks, B, C)."""

    def __init__(self, nets: list[Any]) -> None:
        super().__init__()
        values, self._buffers_of_all = stack_module_state(nets)
        self.names, self._one = list(values), [nets[0]]  # in a list: not a part of this one
        self.values = nn.ParameterList(values.values())

    def forward(self, images: Tensor) -> Tensor:
        parameters = dict(zip(self.names, self.values, strict=True))
        call = partial(functional_call, self._one[0])
        answer = vmap(lambda own, kept: call((own, kept), (images,)), randomness="different")
        logits: Tensor = answer(parameters, self._buffers_of_all)
        return logits


def _apart(nets: list[Any], stack: _Stack, images: Tensor, labels: Tensor) -> float:
    for net in nets:
        net.zero_grad()
        cross_entropy(net(images), labels).backward()
    stack.zero_grad()
    torch.stack([cross_entropy(logits, labels) for logits in stack(images)]).sum().backward()
    alone = [dict(net.named_parameters()) for net in nets]
    largest, difference = 0.0, 0.0
    for name, together in zip(stack.names, stack.values, strict=True):
        for own, gradient in zip(alone, together.grad, strict=True):
            largest = max(largest, float(own[name].grad.abs().max()))
            difference = max(difference, float((own[name].grad - gradient).abs().max()))
    return float(f"{difference / largest:.1e}")
