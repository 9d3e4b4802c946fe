"""Several branches on a shared trunk, whose logits are averaged or combined by a gate.

With a gate it is the network of ONE (Lan, Zhu, Gong 2018, arXiv 1806.04606).
"""

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
from tutelage.models.surgery import declare_inputs, record_operations


class Gate(nn.Module):
    """Weights of the branches for each sample, from the trunk's output: pool, linear, batch norm, ReLU, softmax."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, shared: Tensor) -> Tensor:
        """(B, D, H, W), (B, N, D) tokens or (B, D) to (B, branches); each row sums to 1."""
        if shared.ndim == 4:
            shared = shared.mean((2, 3))
        elif shared.ndim == 3:
            shared = shared.mean(1)
        gates: Tensor = torch.relu(self.norm(self.linear(shared))).softmax(1)
        return gates


class Branched(nn.Module):
    """Networks that share all layers up to a given one, and the gated sum or the mean of their logits.

    The first branch is the original network, with its own layers and key names. In each other branch the layers up to
    the given one are replaced by the outputs of the first branch's layers. So the trunk runs once, its running
    statistics are updated once, and the gradients of all branches reach it. A parameter outside of these layers (a
    class token) is shared.

    Attributes:
        branches: the networks, each from images (B, C, H, W) to logits (B, classes).
        gate: the trunk's output (B, ...) to (B, branches); ``None`` for the mean.
    """

    def __init__(
        self, first: nn.Module, others: Sequence[nn.Module], at: str, example: Tensor, combine: str = "gate"
    ) -> None:
        super().__init__()
        trunk = _trace(first, at, example)
        if combine == "gate" and trunk.rows != len(example):
            raise TutelageError(
                f"a gate weighs the branches of each sample, and {at!r} of {type(first).__name__} returns {trunk.rows} "
                f"rows for {len(example)} samples; combine the branches by their mean, or branch at another layer"
            )
        self.at, self._trunk_outputs, self._listening = at, dict[str, list[Any]](), False
        self._replays: list[list[_Replay]] = []
        for other in others:
            replays = [
                _replace(other, name, first.get_submodule(name), name in trunk.overwritten) for name in trunk.layers
            ]
            self._replays.append(replays)
            _share_loose_parameters(first, other)
        self.branches = nn.ModuleList([first, *others])
        declare_inputs(self, self.branches)
        self.gate = Gate(trunk.channels, len(self.branches)).to(example.device) if combine == "gate" else None
        self._hooks = [
            first.get_submodule(name).register_forward_hook(_Listener(self, name, name in trunk.overwritten))
            for name in trunk.layers
        ]
        settings = {"at": at, "branches": len(self.branches), "combine": combine}
        record_operations(self, [{"operation": "branch", **settings}])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to z_e = sum_i g_i z_i, (B, classes), with g_i = 1 / branches if there is no gate."""
        self._listening = True
        try:
            logits = [self.branches[0](images)]
            self._listening = False
            for branch, replays in zip(list(self.branches)[1:], self._replays, strict=True):
                for replay in replays:
                    replay.pending = list(self._trunk_outputs[replay.layer])
                logits.append(branch(images))
            shared = first_tensor(self._trunk_outputs[self.at][-1])
        finally:
            self._listening = False
            self._trunk_outputs.clear()
        if self.gate is None:
            return torch.stack(logits).mean(0)
        if shared is None:
            raise TypeError(f"layer {self.at!r} of {type(self.branches[0]).__name__} returned no tensor in this pass")
        gates = self.gate(at_least_float32(shared))
        combined: Tensor = (gates[:, :, None] * torch.stack(logits, 1)).sum(1)
        return combined

    def release(self) -> nn.Module:
        """The first branch without its hooks; this network must not be used afterwards."""
        for hook in self._hooks:
            hook.remove()
        return self.branches[0]


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    at: str,
    branches: int = 3,
    combine: str = "gate",
    others: Sequence[nn.Module] | None = None,
) -> Branched:
    """Make a network of several branches that share the layers up to a given one.

    Args:
        network: images (B, C, H, W) to logits; it becomes the first branch.
        example: images as the network takes them, (B, C, H, W).
        at: the name of the last shared layer.
        branches: their number, 2 to 64.
        combine: "gate", or "mean" for the mean of the logits.
        others: networks of the same architecture with other weights, for the other branches; copies by default.

    Raises:
        TutelageError: there is no such layer, or the network cannot be divided there.
    """
    if not 2 <= branches <= 64:
        raise TutelageError(f"a branched network has 2 to 64 branches, got {branches}")
    if combine not in ("gate", "mean"):
        raise unknown("way to combine branches", combine, ["gate", "mean"])
    if any(isinstance(module, Branched) for module in network.modules()):
        raise TutelageError(f"{type(network).__name__} has branches already; branch the original network")
    if at not in dict(network.named_modules()) or not at:
        raise unknown("layer to branch at", at, [name for name, _ in network.named_modules() if name])
    copies = [copy.deepcopy(network) for _ in range(branches - 1)] if others is None else others
    return Branched(network, copies, at, example, combine)


@dataclass(frozen=True)
class _Trunk:
    layers: tuple[str, ...]  # the outermost layers that have finished when the last shared one has
    overwritten: frozenset[str]  # those whose output is later overwritten in place
    channels: int
    rows: int  # of the last shared layer's output


class _Listener:
    """A hook that stores the outputs of a trunk layer of the first branch while the whole network runs."""

    def __init__(self, network: Branched, layer: str, overwritten: bool) -> None:
        self.network, self.layer, self.overwritten = [network], layer, overwritten  # in a list: not a submodule's cycle

    def __call__(self, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        (network,) = self.network
        if network._listening:
            network._trunk_outputs.setdefault(self.layer, []).append(_cloned(output) if self.overwritten else output)


class _Replay(nn.Module):
    """Replaces a trunk layer in another branch: returns the outputs of the first branch's layer, call by call.

    It has the attributes of the first branch's layer, which other code may read.
    """

    def __init__(self, layer: str, original: nn.Module, overwritten: bool) -> None:
        super().__init__()
        self.layer, self.overwritten = layer, overwritten
        self.original = [original]  # in a list, so that it is no submodule
        self.pending: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        """Missing attributes are those of the replaced layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" not in self.__dict__:  # during copying
                raise
            return getattr(self.original[0], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """The layer's output for these images."""
        output = self.pending.pop(0)
        return _cloned(output) if self.overwritten else output


def _cloned(output: Any) -> Any:
    if isinstance(output, tuple | list):
        return type(output)(*map(_cloned, output)) if hasattr(output, "_fields") else type(output)(map(_cloned, output))
    return output.clone() if isinstance(output, Tensor) else output


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, tuple | list):
        return [tensor for item in output for tensor in _tensors(item)]
    return [output] if isinstance(output, Tensor) else []


def _replace(network: nn.Module, layer: str, original: nn.Module, overwritten: bool) -> _Replay:
    replay = _Replay(layer, original, overwritten)
    network.set_submodule(layer, replay)
    return replay


def _share_loose_parameters(first: nn.Module, other: nn.Module) -> None:
    """Share the first branch's parameters of modules that contain both trunk and branch layers."""
    for name, module in first.named_modules():
        children = dict(module.named_children())
        if not children or name not in dict(other.named_modules()):
            continue
        counterpart = other.get_submodule(name)
        if any(isinstance(child, _Replay) for child in counterpart.modules()):
            for key, parameter in module.named_parameters(recurse=False):
                setattr(counterpart, key, parameter)


def _trace(network: nn.Module, at: str, example: Tensor) -> _Trunk:
    """The layers that have finished when ``at`` has, found by tracing one pass in eval mode.

    Only dropout is in train mode, since it may then overwrite its input, and in eval mode does not.
    """
    names = {module: name for name, module in network.named_modules() if name}
    finished: list[tuple[str, Tensor | None, list[tuple[Tensor, int]]]] = []

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        versions = [(tensor, tensor._version) for tensor in _tensors(output)]
        finished.append((names[module], first_tensor(output), versions))

    handles = [module.register_forward_hook(record) for module in names]
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
            "name a layer that runs once and returns a tensor"
        )
    end = calls.index(at)
    before = set(calls[: end + 1]) - set(calls[end + 1 :])
    layers = tuple(name for name in names.values() if name in before and not _inside(name, before))
    if not any(True for name in layers for _ in network.get_submodule(name).parameters()):
        raise TutelageError(f"{type(network).__name__} has no parameters up to {at!r}; branch at a later layer")
    channels = shared.shape[2] if shared.ndim == 3 else shared.shape[1]
    overwritten = frozenset(
        name for name, _, versions in finished if any(tensor._version != version for tensor, version in versions)
    )
    return _Trunk(layers, overwritten, int(channels), len(shared))


def _inside(name: str, layers: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in layers for count in range(1, len(parts)))
