"""Finding a network's stages and embedding by tracing one forward pass.

No network needs to be edited or configured. One pass in eval mode records the output of every submodule; roles are
assigned by the shapes:

* ``stage1`` .. ``stageN``: the last map of each resolution, in order of execution. Token sequences (B, N, D) count as
  maps of their patch grid. If all maps have one resolution (a ViT, a ConvMixer), the stages are the blocks at a
  quarter, half, three quarters and the end of the depth; this choice is ours. So are those of a text: the features of
  its tokens (B, T, D) are a sequence of one resolution.
* ``stem``: the output of the first layer with weights at the first of these resolutions, unless it is ``stage1``. It is
  roughly the input of the first stage.
* ``embedding``: the input of the classifier (the last layer with a weight matrix), (B, D).
* ``preactivation1`` .. ``preactivationN``: the stages before the activation that ends them: the input of the module
  whose output is the stage; the stage itself if no ReLU ends it, so that it has values below 0. A stage that ends in a
  function, such as ``F.relu``, has none.

The layers of a front (``models/surgery/front.py``) are not the network's own and have no role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.attach import fronts_of
from tutelage.models.outputs import first_tensor
from tutelage.models.tracing import TracedLayer, trace_layers

INPUT = "input:"  # "input:fc" is the input of the layer fc, "fc" its output
ISOTROPIC_STAGES = 4
_ADDED = "_tutelage_roles"  # attribute of a network: roles added by surgery


@dataclass(frozen=True, slots=True)
class Tap:
    """The source of a role: a layer, its input or its output, and the patch grid if these are tokens.

    If the layer runs several times, as a shared ReLU does, its last call counts.
    """

    layer: str
    of_input: bool = False
    grid: tuple[int, int] | None = None
    overwritten: bool = False
    """Whether a later layer overwrites the tensor in place (as a ReLU may); it is then copied when it is captured."""
    calls: int = 1
    """How often the layer runs in a forward pass."""

    def __str__(self) -> str:
        return INPUT + self.layer if self.of_input else self.layer

    def read(self, role: str, value: Any) -> Tensor:
        """The role's tensor, a map (B, C, H, W) or a vector (B, D), from the layer's input or output.

        Raises:
            TutelageError: it contains no tensor.
        """
        tensor = first_tensor(value)
        if tensor is None:
            raise TutelageError(f"layer {self.layer!r}, named as {role!r}, returns no tensor; name another layer")
        if role == "embedding":
            return tensor.mean((2, 3)) if tensor.ndim == 4 else tensor.flatten(1)
        return as_map(tensor, self.grid) if tensor.ndim == 3 and self.grid else tensor


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, D) tokens as a (B, D, H, W) map, without the class and register tokens, which come first."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], height, width)


def find_roles(module: nn.Module, inputs: Any, manual: Mapping[str, Tap] = MappingProxyType({})) -> dict[str, Tap]:
    """The roles of a network's layers, found by one forward pass.

    Args:
        module: any classifier; it runs in eval mode without gradients, and its modes are restored.
        inputs: as the module takes them: a tensor (B, ...), a tuple of positional or a mapping of keyword inputs.
        manual: from ``parse_roles``; these roles take precedence over those found. If one of them is a stage, the
            network has only the stages and the stem named by hand.

    An attribute ``sequence_roles`` of the network names roles whose outputs (B, T, ...) are sequences and no patches.

    Raises:
        TutelageError: neither a stage nor an embedding was found; the message lists the traced layers.
    """
    fronts = tuple(f"{name}." for name in fronts_of(module))
    calls = [layer for layer in trace_layers(module, inputs) if not f"{layer.name}.".startswith(fronts)]
    traced = [layer for layer in calls if layer.calls == 1]
    automatic_taps = _stages(traced) | _embedding(traced)
    if any(role.startswith("stage") for role in manual):
        automatic_taps = {role: tap for role, tap in automatic_taps.items() if role == "embedding"}
    last = {layer.name: layer for layer in calls}  # calls of a layer; for grids, the flag `overwritten` and the number
    taps = automatic_taps | {role: _traced_tap(tap, last) for role, tap in manual.items()}
    # Sequences, such as spikes over time, can have as many steps as a grid has patches.
    taps |= {role: replace(taps[role], grid=None) for role in getattr(module, "sequence_roles", ()) if role in taps}
    taps = taps | _preactivations(calls, last, taps) | taps  # in this order, and those named by hand take precedence
    if not taps:
        layers = (
            ", ".join(f"{layer.name} {tuple(layer.output.shape)}" for layer in traced[:12])
            or "none that returns a tensor"
        )
        raise TutelageError(
            f"no stage or embedding found in {type(module).__name__}; layers traced: {layers}. "
            'Name them by hand, for example roles={"stage1": "layer1", "embedding": "input:fc"}'
        )
    return taps


def declared_roles(module: nn.Module) -> dict[str, str]:
    """The roles that a network declares: in an attribute ``roles``, and those added by surgery.

    An attribute ``roles`` is ignored if none of its keys is one of our roles and none of its values is a layer: it then
    has another meaning.
    """
    declared = getattr(module, "roles", None)
    added: Mapping[str, str] = module.__dict__.get(_ADDED, {})
    if not isinstance(declared, Mapping) or not all(
        isinstance(text, str) for pair in declared.items() for text in pair
    ):
        return dict(added)
    layers = dict(module.named_modules())
    has_role = any(re.fullmatch(r"stem|stage\d+|embedding", role) for role in declared)
    has_layer = any(text.removeprefix(INPUT) in layers for text in declared.values())
    return {**(declared if has_role or has_layer else {}), **added}


def add_role(module: nn.Module, role: str, layer: str) -> None:
    """Add a role to those that a network declares; copies of the network have it too."""
    module.__dict__[_ADDED] = {**module.__dict__.get(_ADDED, {}), role: layer}


def remove_missing_roles(module: nn.Module) -> None:
    """Remove the roles of layers that the network no longer has from those that it declares."""
    layers = dict(module.named_modules())
    roles = declared_roles(module)
    remaining = {role: text for role, text in roles.items() if text.removeprefix(INPUT) in layers}
    if len(remaining) < len(roles):
        added = module.__dict__.get(_ADDED, {})
        module.__dict__[_ADDED] = {role: text for role, text in added.items() if role in remaining}
        module.roles = {role: text for role, text in remaining.items() if role not in added}  # type: ignore[assignment]


def parse_roles(module: nn.Module, roles: Mapping[str, str]) -> dict[str, Tap]:
    """The taps of roles named by hand.

    Raises:
        TutelageError: the module has no such layer.
    """
    layers = dict(module.named_modules())
    taps = {}
    for role, text in roles.items():
        layer = text.removeprefix(INPUT)
        if layer not in layers:
            raise unknown(
                f"layer for role {role!r} in {type(module).__name__}",
                layer,
                [name for name in layers if name],
            )
        taps[role] = Tap(layer, of_input=text.startswith(INPUT))
    return taps


def preactivation(stage: str) -> str:
    """The role of a stage before its activation: ``preactivation1`` of ``stage1``."""
    return stage.replace("stage", "preactivation")


def _output_tap(layer: TracedLayer) -> Tap:
    grid = layer.size if layer.output.ndim == 3 and not layer.is_sequence else None
    return Tap(layer.name, grid=grid, overwritten=layer.output._version != layer.version, calls=layer.calls)


def _input_tap(layer: TracedLayer) -> Tap:
    overwritten = layer.input is not None and layer.input._version != layer.input_version
    return Tap(layer.name, of_input=True, overwritten=overwritten, calls=layer.calls)


def _traced_tap(tap: Tap, last: Mapping[str, TracedLayer]) -> Tap:
    layer = last.get(tap.layer)
    if layer is None:
        return tap
    return _input_tap(layer) if tap.of_input else _output_tap(layer)


def _preactivations(
    calls: list[TracedLayer], last: Mapping[str, TracedLayer], taps: Mapping[str, Tap]
) -> dict[str, Tap]:
    """The sources of the stages before their activations, for the stages among ``taps``."""
    found_taps = {}
    for role, tap in taps.items():
        layer = last.get(tap.layer)
        if layer is None or tap.of_input or not re.fullmatch(r"stage\d+", role):
            continue
        activations = [call for call in calls if call.is_activation and call.output is layer.output]
        if activations and activations[-1] is last[activations[-1].name]:
            found_taps[preactivation(role)] = _input_tap(activations[-1])
        elif layer.minimum is not None and layer.minimum < 0:
            found_taps[preactivation(role)] = tap
    return found_taps


def _stages(traced: list[TracedLayer]) -> dict[str, Tap]:
    classifier = _classifier(traced)
    if classifier is not None:
        traced = traced[: traced.index(classifier)]  # the output of a convolutional classifier is no stage
    groups: dict[tuple[int, int], list[TracedLayer]] = {}
    for layer in traced:
        if layer.size is not None:
            groups.setdefault(layer.size, []).append(layer)
    weighted = [group for group in groups.values() if any(layer.has_weights for layer in group)]
    selected = _by_depth(weighted[0]) if len(weighted) == 1 else [group[-1] for group in weighted]
    stages = {f"stage{i}": _output_tap(layer) for i, layer in enumerate(selected, 1)}
    stem = next((layer for layer in weighted[0] if layer.has_weights), None) if weighted else None
    return stages if stem is None or stem.name == stages["stage1"].layer else {"stem": _output_tap(stem)} | stages


def _by_depth(group: list[TracedLayer]) -> list[TracedLayer]:
    """For one resolution: evenly spaced members of the longest list of sibling blocks, or the last map.

    Of equally long lists the outermost is taken: blocks, not the layers of one block.
    """
    siblings: dict[str, list[TracedLayer]] = {}
    for layer in group:
        parent, _, name = layer.name.rpartition(".")
        if name.isdigit() and layer.contains_weights and layer.output.shape == group[-1].output.shape:
            siblings.setdefault(parent, []).append(layer)
    blocks = max(siblings.values(), key=lambda blocks: (len(blocks), -blocks[0].name.count(".")), default=[])
    if len(blocks) < 2:
        return [group[-1]]
    count = min(ISOTROPIC_STAGES, len(blocks))
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def _embedding(traced: list[TracedLayer]) -> dict[str, Tap]:
    classifier = _classifier(traced)
    return {} if classifier is None else {"embedding": Tap(classifier.name, of_input=True)}


def _classifier(traced: list[TracedLayer]) -> TracedLayer | None:
    """The last layer with a weight matrix."""
    for layer in reversed(traced):
        x = layer.input
        if layer.has_matrix and x is not None and x.ndim in (2, 4) and x.is_floating_point():  # no embedding table
            return layer
    return None
