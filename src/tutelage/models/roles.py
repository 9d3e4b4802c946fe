"""Finding a network's stages and embedding by watching one forward pass.

No network needs editing or configuration. Every submodule's output is watched once, in eval mode, and the layers that
play a part are named by the shapes that were seen:

* ``stage1`` .. ``stageN``: the last map of each resolution, in order of execution. Token sequences (B, N, D) count as
  maps of their patch grid. Where all maps have one resolution (a ViT, a ConvMixer) the blocks at a quarter, half,
  three quarters and the end of the depth are the stages; that choice is ours.
* ``stem``: the first map of the first of these resolutions, made by a layer with weights, where it is not the stage
  itself: about what the first stage is given.
* ``embedding``: what the classifier (the last layer with a weight matrix) is given, (B, D).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.inputs import call_arguments, example_tensor
from tutelage.models.modes import eval_mode

INPUT = "input:"  # "input:fc" names what the layer fc is given; "fc" alone names what it gives
ISOTROPIC_STAGES = 4
_ADDED = "_tutelage_roles"  # an attribute that no network of a user has
MOST_PREFIX_TOKENS = 8  # class and register tokens in front of the patches


@dataclass(frozen=True, slots=True)
class Tap:
    """Where a role is read: a layer, its input or its output, and the patch grid when it gives tokens."""

    layer: str
    of_input: bool = False
    grid: tuple[int, int] | None = None
    overwritten: bool = False
    """Whether the network changes the tensor in place later on (as a ReLU may): it is then copied when it is read."""

    def __str__(self) -> str:
        return INPUT + self.layer if self.of_input else self.layer

    def read(self, role: str, value: Any) -> Tensor:
        """The role's tensor from what the layer took or gave: a map (B, C, H, W) or a vector (B, D)."""
        tensor = first_tensor(value)
        if tensor is None:
            raise TutelageError(f"layer {self.layer!r}, named as {role!r}, gives no tensor; name another layer")
        if role == "embedding":
            return tensor.mean((2, 3)) if tensor.ndim == 4 else tensor.flatten(1)
        return as_map(tensor, self.grid) if tensor.ndim == 3 and self.grid else tensor


@dataclass(frozen=True, slots=True, eq=False)
class _TracedLayer:
    """One layer as it finished in the traced pass."""

    layer: str
    taken: Tensor | None
    given: Tensor
    size: tuple[int, int] | None  # the resolution, if it is a map or a grid of tokens
    has_matrix: bool
    has_weights: bool
    holds_weights: bool  # it or a layer in it
    version: int  # of the tensor when the layer gave it; a later one means it was changed in place

    def tap(self) -> Tap:
        """This layer's output as a role."""
        grid = self.size if self.given.ndim == 3 else None
        return Tap(self.layer, grid=grid, overwritten=self.given._version != self.version)


def first_tensor(value: Any) -> Tensor | None:
    """The tensor in a layer's result: itself, or the first of a tuple (attention layers) or of a mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list) and value:
        return first_tensor(value[0])
    return None


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, D) tokens as a (B, D, H, W) map; class and register tokens stand in front and are left out."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], height, width)


def find_roles(module: nn.Module, inputs: Any, by_hand: Mapping[str, Tap] = MappingProxyType({})) -> dict[str, Tap]:
    """The roles of a network's layers, found by one forward pass.

    Args:
        module: any classifier; it is run in eval mode without gradients and left in the mode it was in.
        inputs: as the module takes them: a tensor (B, ...), a tuple of positional or a mapping of keyword inputs.
        by_hand: from ``parse_roles``; they come before what is found. A stage among them replaces all stages, and the
            stem.

    Raises:
        TutelageError: when neither a stage nor an embedding can be told; the message names the layers that were seen.
    """
    seen = _trace(module, inputs)
    found = _stages(seen) | _embedding(seen)
    if any(role.startswith("stage") for role in by_hand):
        found = {role: tap for role, tap in found.items() if role == "embedding"}
    outputs = {s.layer: s.tap() for s in seen}  # these know of grids, and of what is changed in place later
    named = {role: tap if tap.of_input else outputs.get(tap.layer, tap) for role, tap in by_hand.items()}
    taps = found | named
    if not taps:
        layers = ", ".join(f"{s.layer} {tuple(s.given.shape)}" for s in seen[:12]) or "none that gives a tensor"
        raise TutelageError(
            f"no stage or embedding found in {type(module).__name__}; layers seen: {layers}. "
            'Name them by hand, for instance roles={"stage1": "layer1", "embedding": "input:fc"}'
        )
    return taps


def declared_roles(module: nn.Module) -> dict[str, str]:
    """The roles that a network names itself: by an attribute ``roles``, and those that surgery has added.

    An attribute ``roles`` that maps no role of ours and names no layer is the network's own affair.
    """
    own = getattr(module, "roles", None)
    added: Mapping[str, str] = module.__dict__.get(_ADDED, {})
    if not isinstance(own, Mapping) or not all(isinstance(text, str) for pair in own.items() for text in pair):
        return dict(added)
    layers = dict(module.named_modules())
    ours = any(re.fullmatch(r"stem|stage\d+|embedding", role) for role in own)
    ours = ours or any(text.removeprefix(INPUT) in layers for text in own.values())
    return {**(own if ours else {}), **added}


def add_role(module: nn.Module, role: str, layer: str) -> None:
    """Let a network name a further role from now on, copies of it too."""
    module.__dict__[_ADDED] = {**module.__dict__.get(_ADDED, {}), role: layer}


def parse_roles(module: nn.Module, roles: Mapping[str, str]) -> dict[str, Tap]:
    """Roles named by hand, checked against the module's layers."""
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


def _trace(module: nn.Module, inputs: Any) -> list[_TracedLayer]:
    """Every submodule that ran exactly once and gave a tensor, in the order in which they finished."""
    example, (positional, keywords) = example_tensor(inputs), call_arguments(inputs)
    names = {child: name for name, child in module.named_modules() if name}
    calls: Counter[str] = Counter()
    seen: list[_TracedLayer] = []
    patch_grid: list[tuple[int, int]] = []

    def watch(child: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        tensor = first_tensor(given)
        calls[names[child]] += 1
        if tensor is None or tensor.shape[:1] != example.shape[:1]:
            return
        if tensor.ndim == 4 and _is_picture(tensor, example):
            patch_grid.append((int(tensor.shape[2]), int(tensor.shape[3])))
        # A parametrised layer (weight norm) keeps its weights in a child of this name.
        own = [p for name, p in child.named_parameters() if "." not in name or name.startswith("parametrizations.")]
        seen.append(
            _TracedLayer(
                names[child],
                first_tensor(taken),
                tensor,
                _resolution(tensor, patch_grid, example),
                has_matrix=any(p.ndim >= 2 for p in own),
                has_weights=bool(own),
                holds_weights=next(child.parameters(), None) is not None,
                version=tensor._version,
            )
        )

    handles = [child.register_forward_hook(watch) for child in names]
    try:
        with eval_mode(module), torch.no_grad():
            module(*positional, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return [s for s in seen if calls[s.layer] == 1]


def _is_picture(tensor: Tensor, example: Tensor) -> bool:
    """Whether (B, C, H, W) can be a map of the input: no larger and about of its proportions.

    Attention heads (B, heads, N, D) and channels-last maps (B, H, W, C) have four axes too and are none.
    """
    if example.ndim != 4:  # of texts, vectors and waveforms nothing is a map, unless it is named by hand
        return False
    (height, width), (full_height, full_width) = tensor.shape[2:], example.shape[2:]
    proportion = height * full_width / (width * full_height)
    return bool(height <= full_height and width <= full_width and 2 / 3 <= proportion <= 3 / 2)


def _resolution(tensor: Tensor, maps: list[tuple[int, int]], example: Tensor) -> tuple[int, int] | None:
    """The (height, width) of a map, or of the patch grid that a token sequence was made from; ``None`` for others."""
    if tensor.ndim == 4:
        size = (int(tensor.shape[2]), int(tensor.shape[3]))
        return size if size != (1, 1) and _is_picture(tensor, example) else None
    if tensor.ndim != 3 or example.ndim != 4:
        return None
    tokens = int(tensor.shape[1])
    for height, width in reversed(maps):
        if 1 < height * width <= tokens <= height * width + MOST_PREFIX_TOKENS:
            return height, width
    side = math.isqrt(tokens)
    return (side, side) if side > 1 and tokens - side * side <= 1 else None


def _stages(seen: list[_TracedLayer]) -> dict[str, Tap]:
    classifier = _classifier(seen)
    if classifier is not None:
        seen = seen[: seen.index(classifier)]  # a convolutional classifier's map of classes is no stage
    groups: dict[tuple[int, int], list[_TracedLayer]] = {}
    for s in seen:
        if s.size is not None:
            groups.setdefault(s.size, []).append(s)
    weighted = [group for group in groups.values() if any(s.has_weights for s in group)]
    chosen = _by_depth(weighted[0]) if len(weighted) == 1 else [group[-1] for group in weighted]
    stages = {f"stage{i}": s.tap() for i, s in enumerate(chosen, 1)}
    stem = next((s for s in weighted[0] if s.has_weights), None) if weighted else None
    return stages if stem is None or stem.layer == stages["stage1"].layer else {"stem": stem.tap()} | stages


def _by_depth(group: list[_TracedLayer]) -> list[_TracedLayer]:
    """Of one resolution: evenly spaced members of the longest list of sibling blocks, or the last map.

    Of lists that are equally long the outermost counts: blocks, not the layers of one block.
    """
    siblings: dict[str, list[_TracedLayer]] = {}
    for s in group:
        parent, _, own = s.layer.rpartition(".")
        if own.isdigit() and s.holds_weights and s.given.shape == group[-1].given.shape:
            siblings.setdefault(parent, []).append(s)
    blocks = max(siblings.values(), key=lambda blocks: (len(blocks), -blocks[0].layer.count(".")), default=[])
    if len(blocks) < 2:
        return [group[-1]]
    count = min(ISOTROPIC_STAGES, len(blocks))
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def _embedding(seen: list[_TracedLayer]) -> dict[str, Tap]:
    classifier = _classifier(seen)
    return {} if classifier is None else {"embedding": Tap(classifier.layer, of_input=True)}


def _classifier(seen: list[_TracedLayer]) -> _TracedLayer | None:
    """The last layer with a weight matrix."""
    fitting = (s for s in reversed(seen) if s.has_matrix and s.taken is not None and s.taken.ndim in (2, 4))
    return next((s for s in fitting if s.taken is not None and s.taken.is_floating_point()), None)  # no table of tokens
