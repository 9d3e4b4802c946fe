"""Several last stages on one trunk, with a gate: the network of ONE (Lan, Zhu, Gong 2018, arXiv 1806.04606)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from tutelage.errors import TutelageError, unknown
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32, first_tensor
from tutelage.models.surgery import record_operations


class Gate(nn.Module):
    """A weight per sample and branch, from the trunk's output: pool, linear, batch norm, ReLU, softmax."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, shared: Tensor) -> Tensor:
        """(B, D, H, W), (B, N, D) tokens or (B, D) to (B, branches); each row adds up to 1."""
        if shared.ndim == 4:
            shared = shared.mean((2, 3))
        elif shared.ndim == 3:
            shared = shared.mean(1)
        gates: Tensor = torch.relu(self.norm(self.linear(shared))).softmax(1)
        return gates


class Branched(nn.Module):
    """Networks that share everything up to a layer, and the gated sum of their logits.

    The first branch is the network it was made of, with its own layers and key names. In each other branch what has run
    up to the layer is replaced by what the first branch's layers gave for the same images: the trunk runs once, its
    statistics count once, and gradients of all branches reach it. A parameter that belongs to no layer of either part
    (a class token) is shared.

    Attributes:
        branches: the networks; images (B, C, H, W) to logits (B, classes) each.
        gate: (B, ...) trunk output to (B, branches).
    """

    def __init__(self, first: nn.Module, others: Sequence[nn.Module], at: str, example: Tensor) -> None:
        super().__init__()
        trunk = _trace(first, at, example)
        self.at, self._given, self._listening = at, dict[str, list[Any]](), False
        self._replays: list[list[_Replay]] = []
        for other in others:
            replays = [
                _replace(other, name, first.get_submodule(name), name in trunk.overwritten) for name in trunk.layers
            ]
            self._replays.append(replays)
            _share_loose_parameters(first, other)
        self.branches = nn.ModuleList([first, *others])
        self.gate = Gate(trunk.channels, len(self.branches)).to(example.device)
        self._hooks = [
            first.get_submodule(name).register_forward_hook(_Listener(self, name, name in trunk.overwritten))
            for name in trunk.layers
        ]
        record_operations(self, [{"operation": "branch", "at": at, "branches": len(self.branches)}])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to z_e = sum_i g_i z_i, (B, classes)."""
        self._listening = True
        try:
            logits = [self.branches[0](images)]
            self._listening = False
            for branch, replays in zip(list(self.branches)[1:], self._replays, strict=True):
                for replay in replays:
                    replay.waiting = list(self._given[replay.layer])
                logits.append(branch(images))
            shared = first_tensor(self._given[self.at][-1])
        finally:
            self._listening = False
            self._given.clear()
        if shared is None:
            raise TypeError(f"layer {self.at!r} of {type(self.branches[0]).__name__} gave no tensor this time")
        gates = self.gate(at_least_float32(shared))
        together: Tensor = (gates[:, :, None] * torch.stack(logits, 1)).sum(1)
        return together

    def release(self) -> nn.Module:
        """The first branch alone, free of this network, which cannot be used any more."""
        for hook in self._hooks:
            hook.remove()
        return self.branches[0]


def apply(
    network: nn.Module, example: Tensor, *, at: str, branches: int = 3, others: Sequence[nn.Module] | None = None
) -> Branched:
    """Give a network ``branches`` last parts, of which its own is the first.

    Args:
        network: images (B, C, H, W) to logits; it becomes the first branch.
        example: (B, C, H, W), images as it takes them.
        at: the last layer that all branches share, by its name.
        branches: how many in all, 2 to 64.
        others: networks of the same kind with other weights, for the further branches; copies unless given.

    Raises:
        TutelageError: when there is no such layer, or the network cannot be divided there.
    """
    if not 2 <= branches <= 64:
        raise TutelageError(f"a branched network has 2 to 64 branches, got {branches}")
    if any(isinstance(module, Branched) for module in network.modules()):
        raise TutelageError(f"{type(network).__name__} has branches already; branch the network that it was made of")
    if at not in dict(network.named_modules()) or not at:
        raise unknown("layer to branch at", at, [name for name, _ in network.named_modules() if name])
    copies = [copy.deepcopy(network) for _ in range(branches - 1)] if others is None else others
    return Branched(network, copies, at, example)


@dataclass(frozen=True)
class _Trunk:
    layers: tuple[str, ...]  # the largest ones that have run completely when the last shared one has
    overwritten: frozenset[str]  # those whose output is changed in place later
    channels: int


class _Listener:
    """Keeps what a trunk layer of the first branch gives, while the whole network runs."""

    def __init__(self, network: Branched, layer: str, overwritten: bool) -> None:
        self.network, self.layer, self.overwritten = [network], layer, overwritten  # in a list: not a submodule's cycle

    def __call__(self, _layer: nn.Module, _taken: Any, given: Any) -> None:
        (network,) = self.network
        if network._listening:
            network._given.setdefault(self.layer, []).append(_cloned(given) if self.overwritten else given)


class _Replay(nn.Module):
    """Stands for a trunk layer in a further branch: gives what the first branch's gave, call by call.

    Code around it may ask the layer for its attributes; the first branch's layer answers.
    """

    def __init__(self, layer: str, original: nn.Module, overwritten: bool) -> None:
        super().__init__()
        self.layer, self.overwritten = layer, overwritten
        self.original = [original]  # in a list: its parameters are the first branch's
        self.waiting: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        """What a module has not is asked of the layer it stands for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" not in self.__dict__:  # while it is being copied
                raise
            return getattr(self.original[0], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """What the layer gave for these images."""
        given = self.waiting.pop(0)
        return _cloned(given) if self.overwritten else given


def _cloned(given: Any) -> Any:
    if isinstance(given, tuple | list):
        return type(given)(*map(_cloned, given)) if hasattr(given, "_fields") else type(given)(map(_cloned, given))
    return given.clone() if isinstance(given, Tensor) else given


def _tensors(given: Any) -> list[Tensor]:
    if isinstance(given, tuple | list):
        return [tensor for part in given for tensor in _tensors(part)]
    return [given] if isinstance(given, Tensor) else []


def _replace(network: nn.Module, layer: str, original: nn.Module, overwritten: bool) -> _Replay:
    replay = _Replay(layer, original, overwritten)
    network.set_submodule(layer, replay)
    return replay


def _share_loose_parameters(first: nn.Module, other: nn.Module) -> None:
    """Parameters of modules that are of both parts, and so of neither, become those of the first branch."""
    for name, module in first.named_modules():
        children = dict(module.named_children())
        if not children or name not in dict(other.named_modules()):
            continue
        there = other.get_submodule(name)
        if any(isinstance(child, _Replay) for child in there.modules()):
            for key, parameter in module.named_parameters(recurse=False):
                setattr(there, key, parameter)


def _trace(network: nn.Module, at: str, example: Tensor) -> _Trunk:
    """Which layers have run completely when ``at`` has, by watching one pass in eval mode.

    Dropout alone is in train mode: it may overwrite what it is given, and in eval mode that would not show.
    """
    names = {module: name for name, module in network.named_modules() if name}
    finished: list[tuple[str, Tensor | None, list[tuple[Tensor, int]]]] = []

    def watch(module: nn.Module, _taken: Any, given: Any) -> None:
        finished.append((names[module], first_tensor(given), [(tensor, tensor._version) for tensor in _tensors(given)]))

    handles = [module.register_forward_hook(watch) for module in names]
    try:
        with eval_mode(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for dropout in (module for module in network.modules() if isinstance(module, _DropoutNd)):
                dropout.training = True
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    calls = [name for name, _, _ in finished]
    shared = finished[calls.index(at)][1] if calls.count(at) == 1 else None
    if shared is None:
        raise TutelageError(
            f"{type(network).__name__} cannot be branched at {at!r}, which runs {calls.count(at)} times; "
            "name a layer that runs once and gives a tensor"
        )
    end = calls.index(at)
    before = set(calls[: end + 1]) - set(calls[end + 1 :])
    layers = tuple(name for name in names.values() if name in before and not _inside(name, before))
    if not any(True for name in layers for _ in network.get_submodule(name).parameters()):
        raise TutelageError(f"{type(network).__name__} has nothing to share up to {at!r}; branch at a later layer")
    channels = shared.shape[2] if shared.ndim == 3 else shared.shape[1]
    overwritten = frozenset(
        name for name, _, given in finished if any(tensor._version != version for tensor, version in given)
    )
    return _Trunk(layers, overwritten, int(channels))


def _inside(name: str, of: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in of for count in range(1, len(parts)))
