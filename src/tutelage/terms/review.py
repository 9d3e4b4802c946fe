"""Knowledge review (ReviewKD): Chen, Liu, Zhao, Jia 2021, arXiv 2104.09044."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.stages import StagePairs
from tutelage.terms.term import BUILD_FIRST

_LEVELS = (4, 2, 1)


@full_precision
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss (HCL) of ReviewKD, per sample.

    The weighted mean of the mean squared differences of the maps, with weight 1, and of the maps pooled to 4 x 4, 2 x 2
    and 1 x 1, with weights 1/2, 1/4 and 1/8. Sizes that are not smaller than the map are left out.

    Args:
        student, teacher: maps of one shape, (B, C, H, W). No gradient reaches the teacher's.

    Returns:
        (B,), in squared units of the features.

    Raises:
        TutelageError: the shapes differ, or they are no maps.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise TutelageError(
            f"maps of equal shape (B, C, H, W) are compared, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    teacher = teacher.detach()
    total, weights, weight = (student - teacher).square().flatten(1).mean(1), 1.0, 1.0
    for level in _LEVELS:
        if level >= student.shape[2]:
            continue
        weight /= 2
        pooled = [F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher)]
        total = total + weight * (pooled[0] - pooled[1]).square().flatten(1).mean(1)
        weights += weight
    return total / weights


class _Fusion(nn.Module):
    """Attention-based fusion (ABF) of a stage with what the deeper stages passed on.

    Args:
        channels: of the student's map.
        width: of the fused maps.
        target: channels of the teacher's map.
        fuse: whether there is a deeper stage.
    """

    def __init__(self, channels: int, width: int, target: int, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.expand = nn.Sequential(nn.Conv2d(width, target, 3, padding=1, bias=False), nn.BatchNorm2d(target))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's, (B, target, *size), and the fused one to pass on."""
        fused = self.reduce(maps)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, tuple(fused.shape[2:]), mode="nearest")
            attention = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        resized = fused if tuple(fused.shape[2:]) == size else F.interpolate(fused, size, mode="nearest")
        return self.expand(resized), fused


class KnowledgeReview(StagePairs):
    """The sum of ``hierarchical_context`` over stages, each fused with all deeper ones, per sample (B,).

    From the last stage to the first, the student's map is reduced to ``width`` channels, fused with the fused map of
    the deeper stage by a learned attention, and compared with the teacher's map of that stage: a shallow layer of the
    student learns from all layers of the teacher above.

    Args:
        pairs: (student role, teacher role) of each pair of stages, the deepest last.
        width: channels of the fused maps; by default those of the widest student stage.
    """

    def __init__(self, pairs: tuple[tuple[str, str], ...], width: int | None = None) -> None:
        super().__init__(pairs)
        if width is not None and width < 1:
            raise TutelageError(f"the width must be 1 or more channels, got {width}")
        self.width = width
        self.fusions: nn.ModuleList | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the fusions, the deepest first."""
        if self.fusions is not None or teacher is None:
            return
        maps = self.maps(*self.outputs(student, teacher))[::-1]
        width = self.width or max(m.shape[1] for m, _ in maps)
        fusions = [_Fusion(m.shape[1], width, t.shape[1], fuse=place > 0) for place, (m, t) in enumerate(maps)]
        self.fusions = nn.ModuleList(fusions).to(maps[0][0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the teacher's features."""
        deeper, values = None, []
        fusions = self.required(self.fusions, "its fusions", BUILD_FIRST)
        for fusion, (maps, target) in zip(fusions, self.maps(student, teacher)[::-1], strict=True):
            compared, deeper = fusion(maps, deeper, tuple(target.shape[2:]))
            values.append(hierarchical_context(compared, target))
        return torch.stack(values).sum(0)
