"""Features of first and second order, on textures that differ in one of them.

python -m experiments.mofs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.views import CropsAndFlips
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.mofs.pooling import CovariancePooling
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

EPOCHS, RATE = 20, 0.1
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "means": ("plain", {}),
    "covariances": ("plain", {}),
    "means and covariances": ("plain", {}),
    "network, plain": ("plain", {}),
    "network, MOFS": ("mofs", {}),
}


class Means(nn.Module):
    """The mean of each channel: (B, D, H, W) to (B, D)."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return maps.mean((2, 3))


class Both(nn.Module):
    """Means and covariances: (B, D, H, W) to (B, D + D (D + 1) / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Means(), CovariancePooling(channels, 5)])

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([part(maps) for part in self.parts], 1)


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one row and measure it on the test split; nothing is written to the folder."""
    data = textures(condition, seed)
    name, settings = METHODS[row]
    training = Run(
        data,
        lambda: Tapped(network(row), *data.mean_std),
        recipe=Recipe(epochs=EPOCHS, batch_size=50, lr=RATE, schedule="cosine"),
        hardware=Hardware(device="cpu", workers=0),
        seed=seed,
    )
    trained = find(name)(training, **settings)
    measured = {"test": float(accuracy(training.predict(trained, data.test), data.test.labels))}
    for role in sorted(role for role in trained.taps if role.endswith(" head")):
        measured[role] = float(accuracy(training.predict(trained, data.test, (role,)), data.test.labels))
    return measured


def network(row: str) -> nn.Module:
    """A linear classifier on pooled pixels, or a network of one 1x1 convolution to 16 channels."""
    if row == "means":
        return nn.Sequential(Means(), nn.Linear(3, 4))
    if row == "covariances":
        return nn.Sequential(CovariancePooling(3, 5), nn.Linear(6, 4))
    if row == "means and covariances":
        return nn.Sequential(Both(3), nn.Linear(9, 4))
    convolution = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(convolution, Means(), nn.Linear(16, 4))


def textures(condition: str, seed: int) -> Data:
    """Four classes of images of 16 x 16 independent pixels with three channels, 400 for training and 400 for testing.

    Under ``"equal means"`` the classes differ in the signs of the correlations of the first channel with the others,
    +-0.6; under ``"equal covariances"`` in the signs of the shifts of the means of two channels, +-0.2 deviations.
    """
    generator = torch.Generator().manual_seed(seed)

    def part(size: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(size) % 4
        signs = torch.stack([labels % 2, labels // 2], 1) * 2.0 - 1
        noise = torch.randn(size, 16, 16, 3, generator=generator)
        first = noise[..., 0]
        mixed = 0.6 * signs[:, None, None, :] * first[..., None] + 0.8 * noise[..., 1:]
        shifted = noise[..., 1:] + 0.2 * signs[:, None, None, :]
        others = mixed if condition == "equal means" else shifted
        images = 127.5 + 30 * torch.cat([first[..., None], others], 3)
        return images.round().clamp(0, 255).to(torch.uint8), labels

    return Data.from_arrays(part(400), part(400), views=CropsAndFlips(), name="textures")


EXPERIMENT = Experiment(
    name="mofs",
    measure=run,
    rows=tuple(METHODS),
    baseline="network, plain",
    columns={
        "test": Column("test"),
        **{f"{name} head": Column(f"{name} head") for name in ("high", "covariance", "all")},
    },
    conditions={
        "equal means": "Textures of equal means",
        "equal covariances": "Textures of equal covariances",
    },
    seeds=5,
    head="""
# Features of first and second order (`mofs`)

**Question.** MOFS (Wang et al. 2020) classifies by the means of feature maps and by the square root of their
covariance. Does covariance pooling separate classes that means cannot, and the reverse? Does a network need it?

**Data.** Synthetic textures: images of 16 x 16 independent pixels with three channels, four classes, 400 images for
training and 400 for testing, drawn anew for each seed. *Equal means*: all classes have the same means and variances;
they differ in the signs of the correlations, 0.6 in size, of the first channel with the second and with the third.
*Equal covariances*: they differ in the signs of the shifts of two channels' means, 0.2 standard deviations in size.

**Rows.** *means*, *covariances* and *means and covariances* are linear classifiers on the pooled pixels; the root has
five Newton-Schulz iterations, as in `mofs`. They test the pooling alone, since nothing nonlinear precedes it. *network,
plain* is a 1x1 convolution to 16 channels with batch normalisation and ReLU, a mean and a linear classifier; *network,
MOFS* replaces its classifier by the heads of `mofs`, and the columns show its single heads.

**Protocol.** `plain` or `mofs`, 20 epochs of batches of 50, SGD with Nesterov momentum 0.9, weight decay 0.0005, a
learning rate of 0.1 with a cosine schedule, no augmentation; the same for all rows, without tuning. Evaluation is
after the last epoch. Chance is 25 %.
""",
    tail="""
## What it shows

- **Covariance pooling separates textures of equal means and variances without an error on every seed, where the means
  are at chance; with equal covariances it is the reverse.** Both together solve both problems, up to a few images.
- A network does not need covariance pooling for this: a 1x1 convolution with ReLU before the mean solves both problems.
  The mean of ReLU(w x) depends on the variance of w x, and so on the correlations. For the same reason the covariance
  head of MOFS separates textures of equal covariances: after a ReLU the covariance depends on the mean. The two orders
  are separate only where nothing nonlinear precedes the pooling.

## What it does not show

MOFS was not compared on photographs of birds, cars or aircraft, for which it is meant and for which neither the data
nor a network pretrained on ImageNet is available here. These textures are too easy to rank networks, so nothing here
says whether MOFS is more accurate than a plain network.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
