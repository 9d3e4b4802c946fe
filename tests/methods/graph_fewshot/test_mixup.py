"""Manifold mix-up of the method graph_fewshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.graph_fewshot.images import NOTHING, Net, batch_of, features
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.methods.graph_fewshot.heads import BaseClasses
from tutelage.methods.graph_fewshot.views import MixedFeatures
from tutelage.models.tapped import Tapped
from tutelage.training import Run


def full_output(model: Tapped, inputs: Tensor) -> Tensor:
    return model.tap(inputs, ("embedding",))["embedding"]


def test_features_and_labels_are_mixed_consistently(tiny_data: Data, tiny_model: Net) -> None:
    """The parts of the network are run by hand, with the mixture between them."""
    model = tiny_model(1).eval()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model.trace(images)
    net, batch = model.module, batch_of(images, torch.tensor([0, 1, 2, -1, 3]))
    view = MixedFeatures(model, 2.0, 4)
    layers = set()
    with view.hooked():
        for seed in range(12):
            torch.manual_seed(seed)
            mixed_batch = view(batch, NOTHING, None)
            mix = view.pending
            assert mix is not None
            layers.add(mix.layer)
            stages = full_output(model, mixed_batch.inputs)
            assert view.pending is None

            def together(x: Tensor, index: str, mix: Any = mix) -> Tensor:
                return mix.share * x + (1 - mix.share) * x[mix.partners] if index == mix.layer else x

            x = together((images - model.mean) / model.std, "input")
            x = F.relu(together(net.bn1(net.conv1(x)), "stage1"))  # type: ignore[operator]
            x = F.relu(together(net.bn2(net.conv2(x)), "stage2"))  # type: ignore[operator]
            torch.testing.assert_close(stages, x.mean((2, 3)))
            one_hot_labels = F.one_hot(batch.targets.clamp(min=0), 4) * (batch.targets >= 0)[:, None]
            torch.testing.assert_close(
                mixed_batch.targets, mix.share * one_hot_labels + (1 - mix.share) * one_hot_labels[mix.partners]
            )
            torch.testing.assert_close(
                full_output(model, images), full_output(tiny_model(1).eval(), images)
            )  # other passes are not mixed
    assert layers == {"input", "stage1", "stage2"}
    assert not model.module._forward_pre_hooks


def test_mixed_labels_are_a_mixture_of_losses(tiny_model: Net) -> None:
    model = tiny_model(1)
    model.trace(torch.rand(2, 1, 8, 8))
    view, term, student = MixedFeatures(model, 2.0, 4), BaseClasses(torch.arange(4), 4), features(6)
    term.build(student, None)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    batch = batch_of(torch.rand(6, 1, 8, 8), targets)
    mixed_batch = view(batch, NOTHING, None)
    assert view.pending is not None
    share, partners = view.pending.share, view.pending.partners
    direct, other = (term(student, None, replace(batch, targets=t)) for t in (targets, targets[partners]))
    torch.testing.assert_close(term(student, None, mixed_batch), share * direct + (1 - share) * other)


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_mixing_shares_follow_beta_distribution(alpha: float, tiny_model: Net) -> None:
    model = tiny_model(1)
    view, batch = MixedFeatures(model, alpha, 4), batch_of(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    shares = []
    torch.manual_seed(0)
    for _ in range(2000):
        view.pending = None
        view(batch, NOTHING, None)
        assert view.pending is not None
        shares.append(view.pending.share)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


class Late(nn.Module):
    """Names a layer that runs after the embedding as a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc, self.last = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.fc(self.first(x.flatten(1))))
        return logits


def test_layer_after_embedding_is_refused(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    def late() -> Tapped:
        return Tapped(Late(), roles={"stage1": "fc", "embedding": "first"})

    run = Run(tiny_data, late, recipe=Recipe(epochs=2, batch_size=8, lr=0.01), hardware=on_cpu)
    with refused("stage1 of Late is not computed before the embedding", "roles="):
        find("graph_fewshot")(run, rotation="never", mix_share=1.0)
