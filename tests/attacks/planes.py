"""Linear networks with known distances to their boundary, and images away from the ends of the pixel range."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plane(features: int = 16, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Two classes, float64: logits w x + b and 0, whose boundary crosses the middle of the pixel range."""
    layer = nn.Linear(features, 2).double()
    row = scale * torch.randn(features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer.weight.data = torch.stack([row, torch.zeros_like(row)])
    layer.bias.data = torch.stack([-row.sum() / 2, row.new_zeros(())])
    return nn.Sequential(nn.Flatten(), layer)


def near_grey(samples: int, seed: int = 1, width: float = 0.05) -> Tensor:
    """(N, 1, 4, 4) float64 within ``width`` of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + width * (2 * torch.rand(samples, 1, 4, 4, generator=generator, dtype=torch.float64) - 1)


def labels_of(model: nn.Module, images: Tensor) -> Tensor:
    """The predictions."""
    with torch.no_grad():
        predictions: Tensor = model(images).argmax(1)
    return predictions


def distances(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The distance of each image from the boundary of ``plane`` by norm: |f| / ||w||_q, with q the dual norm."""
    layer = model[1]  # type: ignore[index]
    row = layer.weight.detach()[0]
    value = (images.flatten(1) @ row + layer.bias.detach()[0]).abs()
    return {"linf": value / row.abs().sum(), "l2": value / row.norm(), "l1": value / row.abs().max()}


def draws(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)
