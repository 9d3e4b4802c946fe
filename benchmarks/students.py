"""Training steps of several students on one batch: in turn, or stacked by ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from benchmarks.pairs import Numbers, as_json, compare
from benchmarks.setting import device, make_batches, network, random_images, sizes, to_hardware
from tutelage.config import Hardware
from tutelage.training.hardware import autocast, resolve

NUMBER = 4
NETWORKS = ("resnet8x0.5", "resnet20", "wrn-16-2")


def students(short: bool) -> Numbers:
    """Forward and backward passes of four students: in turn, stacked by ``vmap``, and on a GPU on one stream each.

    Stacked parameters make each layer one operation for all students. The last row is the largest difference between
    the gradients of stacked and separate students in float32, relative to the largest gradient.
    """
    measured: Numbers = {}
    for size in sizes()[:1] if short else sizes():
        for name in NETWORKS[:1] if short else NETWORKS:
            measured[f"{NUMBER} of {name}, batches of {size}"] = _students(name, size, 2 if short else 20)
    return measured


def _students(name: str, size: int, rounds: int) -> Numbers:
    data, hardware = random_images(size), resolve(Hardware())
    ((images, labels),) = make_batches(data, size, 1, device())
    nets = [to_hardware(network(name, data, seed), data, hardware).train() for seed in range(NUMBER)]
    stack = _Stack(nets)

    def in_turn() -> None:
        for net in nets:
            net.zero_grad()
            with autocast(hardware):
                logits = net(images)
            cross_entropy(logits.float(), labels).backward()

    def stacked() -> None:
        stack.zero_grad()
        with autocast(hardware):
            logits = stack(images)
        losses = [cross_entropy(student.float(), labels) for student in logits]
        torch.stack(losses).sum().backward()

    candidates: dict[str, Callable[[], object]] = {"in turn": in_turn, "stacked": stacked}
    if device().type == "cuda":
        candidates["on streams"] = partial(
            _on_streams, nets, images, labels, hardware, [torch.cuda.Stream() for _ in nets]
        )
    difference = _gradient_difference(nets, stack, images, labels)
    return as_json(compare(candidates, "in turn", rounds)) | {"largest relative difference": difference}


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
    """Networks of one architecture as one module that returns all logits, (networks, B, C)."""

    def __init__(self, nets: list[Any]) -> None:
        super().__init__()
        values, self.stacked_buffers = stack_module_state(nets)
        self.names, self._template = list(values), [nets[0]]  # in a list: not a submodule
        self.values = nn.ParameterList(values.values())

    def forward(self, images: Tensor) -> Tensor:
        parameters = dict(zip(self.names, self.values, strict=True))
        call = partial(functional_call, self._template[0])
        forward = vmap(lambda values, buffers: call((values, buffers), (images,)), randomness="different")
        logits: Tensor = forward(parameters, self.stacked_buffers)
        return logits


def _gradient_difference(nets: list[Any], stack: _Stack, images: Tensor, labels: Tensor) -> float:
    for net in nets:
        net.zero_grad()
        cross_entropy(net(images), labels).backward()
    stack.zero_grad()
    torch.stack([cross_entropy(logits, labels) for logits in stack(images)]).sum().backward()
    separate = [dict(net.named_parameters()) for net in nets]
    largest, difference = 0.0, 0.0
    for name, stacked in zip(stack.names, stack.values, strict=True):
        for parameters, gradient in zip(separate, stacked.grad, strict=True):
            largest = max(largest, float(parameters[name].grad.abs().max()))
            difference = max(difference, float((parameters[name].grad - gradient).abs().max()))
    return float(f"{difference / largest:.1e}")
