"""Auxiliary classifiers of groups of classes, and their joint prediction: Palacio, Engler, Hees, Dengel 2020."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.outputs import at_least_float32
from tutelage.text import value_text


class Block(nn.Module):
    """Parallel convolutions of several shapes, concatenated: the last block of Inception-v3 in one width.

    The branches are 1x1; 1x1, then 1x3 and 3x1; 1x1, 3x3, then 1x3 and 3x1; mean over 3x3, then 1x1. Each convolution
    is followed by batch normalisation and ReLU.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.point = _conv(channels, width, 1)
        self.shallow = _conv(channels, width, 1)
        self.deep = nn.Sequential(_conv(channels, width, 1), _conv(width, width, 3))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(channels, width, 1))
        self.shallow_wide, self.shallow_high = _conv(width, width, (1, 3)), _conv(width, width, (3, 1))
        self.deep_wide, self.deep_high = _conv(width, width, (1, 3)), _conv(width, width, (3, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 6 width, H, W)."""
        shallow, deep = self.shallow(maps), self.deep(maps)
        split = (self.shallow_wide(shallow), self.shallow_high(shallow), self.deep_wide(deep), self.deep_high(deep))
        return torch.cat([self.point(maps), *split, self.pooled(maps)], 1)


class Branch(nn.Module):
    """A classifier of a feature map: convolution of 5x5 or 3x3, convolution of 3x3, block, mean, linear layer.

    Args:
        channels: of the map.
        outputs: of the linear layer.
        width: channels of each convolution.
        first: whether it is the first branch, on the largest map: its first convolution is 5x5 with stride 2.
    """

    def __init__(self, channels: int, outputs: int, width: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 5, 2) if first else _conv(channels, width, 3)
        self.conv2 = _conv(width, width, 3)
        self.block = Block(width, width)
        self.fc = nn.Linear(6 * width, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs)."""
        logits: Tensor = self.fc(self.block(self.conv2(self.conv1(maps))).mean((2, 3)))
        return logits


class GroupHeads(nn.Module):
    """Branches that predict the group of a sample's class, and the joint prediction.

    With z the network's logits, a_b those of branch b and g_b(k) the group of class k, the logits are

        log softmax(z)_k + gamma sum_b log softmax(a_b)_{g_b(k)},

    whose softmax is the product of the network's probability and those of the groups to the power gamma, renormalised.

    Args:
        branches: maps to (B, groups of this branch).
        groups: (branches, classes) int64, the group of each class in each branch.
        gamma: the weight of the branches.
    """

    def __init__(self, branches: Sequence[nn.Module], groups: Tensor, gamma: float) -> None:
        super().__init__()
        self.branches, self.gamma = nn.ModuleList(branches), gamma
        for number, row in enumerate(groups):
            self.register_buffer(f"groups{number}", row.clone(), persistent=False)

    def forward(self, logits: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, classes) logits and the maps of the branches to (B, classes)."""
        joint = at_least_float32(logits).log_softmax(1)
        for number, (branch, values) in enumerate(zip(self.branches, maps, strict=True)):
            groups = self.get_buffer(f"groups{number}")
            joint = joint + self.gamma * at_least_float32(branch(values)).log_softmax(1).index_select(1, groups)
        return joint


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1) -> nn.Sequential:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def build(
    logits: Tensor, maps: Sequence[Tensor], *, groups: Sequence[int], gamma: float = 0.3, width: int = 128
) -> GroupHeads:
    """Branches on feature maps, one for each.

    Args:
        logits: (B, K).
        maps: (B, C, H, W), first to last.
        groups: the group of each class in the first branch, then in the second, ...; numbered from 0.
        gamma: the weight of the branches in the joint prediction, 0 or more.
        width: channels of each convolution of a branch.

    Raises:
        TutelageError: a layer returns no feature map, or the settings are invalid.
    """
    classes = logits.shape[1]
    numbers = isinstance(groups, list | tuple) and all(isinstance(group, int) for group in groups)
    if not numbers or len(groups) != classes * len(maps) or not all(0 <= group < classes for group in groups):
        raise TutelageError(
            f"the groups must be {len(maps)} x {classes} numbers from 0 to {classes - 1}, the group of each class in "
            f"each branch, got {value_text(groups)}"
        )
    if not 0 <= gamma < math.inf or width < 1:
        raise TutelageError(
            f"gamma must be a finite number of 0 or more and the width 1 or more, got {gamma} and {width}"
        )
    for values in maps:
        if values.ndim != 4:
            raise TutelageError(
                f"a branch reads a feature map (B, C, H, W), and its layer returns shape {tuple(values.shape)}; name "
                "a layer that returns a map"
            )
    table = torch.tensor(groups).view(len(maps), classes)
    counts = (table.amax(1) + 1).tolist()
    branches = [
        Branch(int(values.shape[1]), count, width, first=number == 0)
        for number, (values, count) in enumerate(zip(maps, counts, strict=True))
    ]
    return GroupHeads(branches, table, gamma).to(maps[0].device, maps[0].dtype)
