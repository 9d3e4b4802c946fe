"""The discriminator of adversarial distillation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tutelage.methods.akdg.critic import Critic
from tutelage.models.tapped import Tapped


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 5, 7), (3, 24, 48), (2, 1, 1)])
def test_critic_accepts_any_image_shape(shape: tuple[int, int, int]) -> None:
    critic = Tapped(Critic(shape, width=0.1), (0.5,), (0.5,))
    outputs = critic.tap(torch.rand(3, *shape), ("score",))
    assert outputs["score"].shape == (3, 1)
    assert outputs.logits is None


def test_layers_of_critic_have_unit_spectral_norm() -> None:
    torch.manual_seed(0)
    critic = Critic((1, 8, 8), width=0.25)
    for _ in range(200):
        critic(torch.rand(2, 1, 8, 8))  # one step of power iteration each
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_evaluation_does_not_change_critic(state_of: Any, changed: Any) -> None:
    critic = Tapped(Critic((1, 8, 8), width=0.25)).eval()
    before = state_of(critic)
    critic.tap(torch.rand(4, 1, 8, 8), ("score",))
    assert changed(before, state_of(critic)) == set()


def test_width_without_channels_is_refused(refused: Any) -> None:
    with refused("width", "take a larger one"):
        Critic((1, 8, 8), width=0.0001)
