"""Training batches of a backbone: rotated images, and samples that are mixed in a hidden layer.

Gidaris, Singh, Komodakis 2018, arXiv 1803.07728 (rotations); Verma et al. 2019, arXiv 1806.05236 (manifold mix-up).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.graph_fewshot.heads import TURNS
from tutelage.models.outputs import Outputs, first_tensor
from tutelage.models.roles import Tap
from tutelage.models.tapped import Tapped
from tutelage.terms.term import View


class Rotated(View):
    """The first samples of a batch, each rotated by 0, 90, 180 and 270 degrees, with their labels: (4 n, C, H, H).

    Args:
        share: the share of the batch, n = share x B, at least 1 sample.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The n images unchanged, then the same n rotated by 90 degrees, and so on."""
        count = max(1, round(self.share * len(batch)))
        images = batch.inputs[:count]
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(TURNS)])
        targets = torch.cat([batch.targets[:count]] * TURNS)
        weight = None if batch.weight is None else batch.weight[:count].repeat(TURNS)
        index = batch.index[:count].repeat(TURNS)
        return Batch(turned, targets, index, key=None, weight=weight)


@dataclass(frozen=True, slots=True)
class Mix:
    """The mixture of the next pass: h <- share h + (1 - share) h[partners], for the features h of ``layer``."""

    layer: str
    share: float
    partners: Tensor


class MixedFeatures(View):
    """Manifold mix-up: the current batch, whose samples are mixed in pairs in a random layer of the next pass.

    lambda ~ Beta(alpha, alpha) is drawn once per batch, the layer uniformly from the input and the network's stages.
    The labels become soft, lambda y_i + (1 - lambda) y_j (B, C), so that their cross-entropy is lambda CE(y_i) + (1 -
    lambda) CE(y_j). A sample without a label contributes 0.

    Args:
        model: the traced network in training; its roles ``stage1`` .. ``stageN`` are the hidden layers.
        alpha: of the Beta distribution.
        classes: the number of classes of the data.
    """

    def __init__(self, model: Tapped, alpha: float, classes: int) -> None:
        self.model, self.alpha, self.classes = model, alpha, classes
        self.pending: Mix | None = None

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The same inputs with mixed labels; the mixture is pending until the next pass reaches the layer.

        Raises:
            TutelageError: the last pass did not reach its layer, or there is no layer to mix in.
        """
        if self.pending is not None:
            raise TutelageError(
                f"{self.pending.layer} of {type(self.model.module).__name__} is not computed before the embedding, so "
                'nothing is mixed there; name other layers, for example roles={"stage1": "layer1"}'
            )
        layers = (("input",) if batch.inputs.is_floating_point() else ()) + self.model.stages
        if not layers:
            raise TutelageError(
                f"{type(self.model.module).__name__} has no stages to mix features in; name layers, for example "
                'roles={"stage1": "layer1"}, or set mix_share=0'
            )
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        layer = layers[int(torch.randint(len(layers), ()))]
        partners = torch.randperm(len(batch), device=batch.inputs.device)
        self.pending = Mix(layer, share, partners)
        soft = batch.targets
        if not soft.is_floating_point():
            soft = F.one_hot(soft.clamp(min=0), self.classes) * (soft >= 0)[:, None]
        return replace(batch, targets=soft.float().lerp(soft[partners].float(), 1 - share), second=None)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context in which the network applies the pending mixture."""
        network = self.model.module
        handles = [network.register_forward_pre_hook(_Hook(self, "input"))]
        for role in self.model.stages:
            tap: Tap = self.model.taps[role]
            layer = network.get_submodule(tap.layer)
            hook = _Hook(self, role)
            register = layer.register_forward_pre_hook if tap.of_input else layer.register_forward_hook
            handles.append(register(hook))
        try:
            yield
        finally:
            self.pending = None
            for handle in handles:
                handle.remove()


class _Hook:
    """A hook that applies the pending mixture to the input or output of its layer."""

    def __init__(self, view: MixedFeatures, layer: str) -> None:
        self.view, self.layer = view, layer

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *values: Any) -> Any:
        mix = self.view.pending
        if mix is None or mix.layer != self.layer:
            return None
        self.view.pending = None
        return _mixed(values[-1], mix)  # the inputs or, in a forward hook, the output


def _mixed(value: Any, mix: Mix) -> Any:
    """The value, with its ``first_tensor`` (B, ...) mixed."""
    if isinstance(value, Tensor):
        return value.lerp(value[mix.partners], 1 - mix.share)
    if not isinstance(value, tuple | list) or first_tensor(value) is None:
        raise TutelageError(f"{mix.layer} returns a {type(value).__name__}, which cannot be mixed; name another layer")
    return type(value)((_mixed(value[0], mix), *value[1:]))
