"""Dynamic multi-path networks (Su, Wu, Chen, Liang, Hu 2020, arXiv 1902.10949) for small images."""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.dmnn.gates import Gates, MaskedBatchNorm2d
from tutelage.models.family import Family
from tutelage.models.networks.resnet import he_initialise

STAGES = 3
EXPANSION = 4  # channels of a block's output for each inner channel of the undivided block
OPEN_LOGIT = 1.5  # the initial bias of the gates' logits


class Path(nn.Module):
    """A bottleneck of convolutions, 1x1, 3x3, 1x1, each with batch normalisation; ReLU after the first two."""

    def __init__(self, in_channels: int, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = MaskedBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = MaskedBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = MaskedBatchNorm2d(channels)

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H', W'); ``active`` is the weight (B,) of ``MaskedBatchNorm2d``."""
        x = F.relu(self.bn1(self.conv1(x), active))
        x = F.relu(self.bn2(self.conv2(x), active))
        out: Tensor = self.bn3(self.conv3(x), active)
        return out

    def flops(self, pixels: int, out_pixels: int) -> int:
        """Floating-point operations for one sample, a multiply-add being 2."""
        first, second, third = (conv.weight.numel() for conv in (self.conv1, self.conv2, self.conv3))
        return 2 * (first * pixels + (second + third) * out_pixels)


class Controller(nn.Module):
    """The logits of a block's gates, from the block's input and the state of the controller before.

    u = ReLU(BN(W x)), x the mean over positions;   h = tanh(U u + V h');   a = G h + b
    """

    def __init__(self, channels: int, size: int, paths: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, size, bias=False)
        self.norm = nn.BatchNorm1d(size)
        self.inner = nn.Linear(size, size)
        self.previous = nn.Linear(size, size, bias=False)
        self.gate = nn.Linear(size, paths)
        nn.init.constant_(self.gate.bias, OPEN_LOGIT)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and h' (B, size) to a (B, paths) and h (B, size)."""
        features = F.relu(self.norm(self.reduce(x.mean((2, 3)))))
        state = torch.tanh(self.inner(features) + self.previous(state))
        return self.gate(state), state


class Block(nn.Module):
    """x to ReLU(s(x) + sum_n g_n F_n(x)), with paths F_n and a shortcut s."""

    def __init__(self, in_channels: int, width: int, channels: int, stride: int, paths: int) -> None:
        super().__init__()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )
        self.paths = nn.ModuleList(Path(in_channels, width, channels, stride) for _ in range(paths))

    def forward(self, x: Tensor, gates: Tensor, *, masked: bool) -> Tensor:
        """(B, C, H, W) and gates (B, paths) to (B, channels, H', W').

        With ``masked``, every path runs on all samples and is multiplied by its gate; otherwise it runs on those
        samples only whose gate is 1, and in eval mode gives the same output.
        """
        out: Tensor = self.shortcut(x)
        for number, path in enumerate(self.paths):
            gate = gates[:, number]
            if masked:
                out = out + gate[:, None, None, None].to(x.dtype) * path(x, gate.detach())
                continue
            rows = gate.nonzero()[:, 0]
            if len(rows) == len(x):
                out = out + path(x)
            elif len(rows):
                out = out.index_add(0, rows, path(x[rows]).to(out.dtype))
        return F.relu(out)


class Record(nn.Module):
    """The identity: its input is the value of a role."""

    def forward(self, values: Tensor) -> Tensor:
        """The same tensor."""
        return values


class DMNN(nn.Module):
    """A residual network of bottlenecks that are divided into paths, each of which a gate switches on or off.

    In eval mode, the paths whose gate is 0 are not computed. Networks that are compiled or exported compute all paths
    and multiply them by their gates, which gives the same outputs. The gates of a sample depend on that sample alone.

    Args:
        depth: 9n+2, for three stages of n blocks of three layers: 11, 20, 29, ...
        num_classes: outputs of ``fc``.
        in_channels: channels of the images.
        image_shape: (C, H, W), for ``path_flops``; other sizes are possible.
        width: multiplies all channels: the undivided bottlenecks have 16, 32 and 64 times the width inner channels,
            blocks four times as many.
        paths: N per block. Their inner widths are such that a block has as many parameters as the undivided one.

    Attributes:
        roles: ``gates`` (B, blocks N), those of the pass, block by block; ``gate_logits``, of the same shape; and
            ``states`` (B, blocks d), of the controllers; the stem, and the last block of each stage.
        path_flops: the floating-point operations of each path for one image of ``image_shape``, in the order of
            ``gates``.
        masked: whether to compute all paths in eval mode too.

    Raises:
        TutelageError: the depth is not 9n+2, or a number of channels is not a positive integer.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        image_shape: tuple[int, ...] = (3, 32, 32),
        width: float = 1,
        paths: int = 2,
    ) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 9)
        inner = round(16 * width)
        if blocks < 1 or remainder:
            nearest = 9 * max(blocks, 1) + 2
            raise TutelageError(
                f"DMNN depth {depth} is not 9n+2 with n of 1 or more: the nearest are {nearest} and {nearest + 9}"
            )
        if inner < 1 or inner != 16 * width or path_width(inner, paths) < 1:
            raise TutelageError(
                f"DMNN width {width} with {paths} paths gives {16 * width:g} inner channels in the first stage: take a "
                "larger multiple of 1/16, or fewer paths"
            )
        self.roles = {"gates": "open_paths", "gate_logits": "gate_logits", "states": "states", "stem": "input:blocks.0"}
        self.masked = False
        self.state_size = max(8, inner // 2)
        self.conv1 = nn.Conv2d(in_channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.blocks, self.controllers = nn.ModuleList(), nn.ModuleList()
        path_flops: list[int] = []
        height, side = image_shape[-2:]
        channels = inner
        for stage in range(STAGES):
            for number in range(blocks):
                stride = 2 if stage and number == 0 else 1
                stage_width = inner * 2**stage
                self.controllers.append(Controller(channels, self.state_size, paths))
                block = Block(channels, path_width(stage_width, paths), EXPANSION * stage_width, stride, paths)
                pixels = height * side
                height, side = math.ceil(height / stride), math.ceil(side / stride)
                path_flops += [path.flops(pixels, height * side) for path in block.paths]  # type: ignore[operator]
                self.blocks.append(block)
                channels = EXPANSION * stage_width
            self.roles[f"stage{stage + 1}"] = f"blocks.{len(self.blocks) - 1}"
        self.path_flops = tuple(path_flops)
        self.gates = Gates()
        self.open_paths, self.gate_logits, self.states = Record(), Record(), Record()
        self.fc = nn.Linear(channels, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        masked = self.masked or self.training or torch.compiler.is_compiling()
        x = F.relu(self.bn1(self.conv1(x)))
        state = x.new_zeros(x.shape[0], self.state_size)
        gates, logits, states = [], [], []
        for controller, block in zip(self.controllers, self.blocks, strict=True):
            block_logits, state = controller(x, state)
            open_paths = self.gates(block_logits)
            x = block(x, open_paths, masked=masked)
            gates.append(open_paths)
            logits.append(block_logits)
            states.append(state)
        self.open_paths(torch.cat(gates, 1))
        self.gate_logits(torch.cat(logits, 1))
        self.states(torch.cat(states, 1))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def path_width(width: int, paths: int) -> int:
    """The inner width w' of N paths with the parameters of one bottleneck of width w and C = 4 w channels.

    2 C w + 9 w^2 = N (2 C w' + 9 w'^2), rounded: 0.62 w for two paths, 0.37 w for four.
    """
    return round(width * (math.sqrt(16 + 9 * 17 / paths) - 4) / 9) if paths > 0 else 0


FAMILY = Family(
    re.compile(r"dmnn(?P<depth>[0-9]+)(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?(?:-(?P<paths>[0-9]+))?"),
    DMNN,
    ("dmnn11", "dmnn20", "dmnn29", "dmnn20-4", "dmnn20x0.5"),
    "gated network of depth 9n+2: dmnn<depth>, x<width> for all channels x width, -<paths> for paths per block (2)",
    "Su et al. 2020, arXiv 1902.10949",
)
