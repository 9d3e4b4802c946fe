"""The flow of solution procedure (FSP): Yim, Joo, Bae, Kim, CVPR 2017."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.plain import Values
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.term import BUILD_FIRST, Term

Reduction = Literal["relative", "paper", "mean"]


@full_precision
def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """G_ij = 1/(h w) sum_{s,t} F1_{i,s,t} F2_{j,s,t}: how the channels of two maps of one network go together.

    Args:
        first, second: (B, m, h, w) and (B, n, h', w'); of different sizes the larger is max-pooled to the smaller.

    Returns:
        (B, m, n), in squared units of the features.

    Raises:
        TutelageError: they are no maps of the same samples.
    """
    if first.ndim != 4 or second.ndim != 4 or len(first) != len(second):
        raise TutelageError(
            f"a flow runs between maps (B, C, H, W) of one network, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}; give tokens (B, T, D) as maps, tokens.transpose(1, 2).unsqueeze(3)"
        )
    size = [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]
    one, two = (_pooled(features, size).flatten(2) for features in (first, second))
    return one @ two.transpose(1, 2) / one.shape[2]


def _pooled(features: Tensor, size: list[int]) -> Tensor:
    return features if list(features.shape[2:]) == size else F.adaptive_max_pool2d(features, size)


@full_precision
def flow_loss(student: Tensor, teacher: Tensor, reduction: Reduction = "paper") -> Tensor:
    """||G^T - G^S||_F^2 per sample: the summand of the paper's equation 2.

    ``"paper"`` is that sum over both channel axes, ``"mean"`` the benchmarks' mean over them (m n times smaller),
    ``"relative"`` the sum divided by the batch's mean of ||G^T||_F^2, which has no unit: 1 where the student's is 0.

    Args:
        student, teacher: flow matrices (B, m, n); no gradient reaches the teacher's.
        reduction: see above.

    Returns:
        (B,).

    Raises:
        TutelageError: for matrices of different shapes.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"the student's flow matrix {tuple(student.shape[1:])} and the teacher's {tuple(teacher.shape[1:])} cannot "
            "be compared: FSP needs as many channels on both sides"
        )
    target = teacher.detach()
    if reduction == "relative":  # no square of it is to over- or underflow
        scale = scale_of(target)
        student, target = student / scale, target / scale
    value = (target - student).square().sum((1, 2))
    if reduction == "relative":
        energy = target.square().sum((1, 2)).mean()
        return value / energy.where(energy > 0, 1.0)
    return value if reduction == "paper" else value / target[0].numel()


class Flow(Term):
    """The flow between consecutive layers of the student against the teacher's, per sample (B,).

    With the reductions ``"paper"`` and ``"mean"`` the sum over flows, with ``"relative"`` their mean. Once it is built
    it asks the teacher for the flow matrices and not for the layers.

    Args:
        layers: (student role, teacher role), first to last, two pairs or more; a flow lies between neighbours.
        reduction: as in ``flow_loss``.
        adapter: ``"auto"`` takes a student's layer to the teacher's number of channels by a trained 1x1 convolution
            where they differ; it is thrown away with the term and is not in the paper. ``"never"`` refuses then.
    """

    reads_labels = False

    def __init__(
        self,
        layers: tuple[tuple[str, str], ...],
        reduction: Reduction = "relative",
        adapter: Literal["auto", "never"] = "auto",
    ) -> None:
        super().__init__()
        if len(layers) < 2:
            names = ", ".join(" and ".join(pair) for pair in layers) or "none"
            raise TutelageError(
                f"FSP compares the flow between two layers, and the two networks have less in common ({names}); "
                'name more of them, for instance roles={"stem": "conv1", "stage1": "layer1"}'
            )
        self.layers, self.reduction, self.adapter = layers, reduction, adapter
        self.roles = tuple(student for student, _ in layers)
        self.adapters: nn.ModuleList | None = None
        self._flows = tuple(DerivedRole(flow_matrix, *theirs) for theirs in pairwise(teacher for _, teacher in layers))

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's layers; once built, the flow between them."""
        return self._flows if self.adapters is not None else tuple(teacher for _, teacher in self.layers)

    def build(self, student: Values, teacher: Values | None) -> None:
        """Make an adapter for each layer from the numbers of channels."""
        if self.adapters is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        adapters: list[nn.Module] = []
        for ours, theirs in self.layers:
            have, want = student[ours].shape[1], teacher[theirs].shape[1]
            if have != want and self.adapter == "never":
                raise TutelageError(
                    f"the student's {ours} has {have} channels and the teacher's {theirs} {want}; FSP needs as many: "
                    "take a student that differs in depth alone, or adapter=auto"
                )
            adapters.append(nn.Identity() if have == want else nn.Conv2d(have, want, 1, bias=False))
        self.adapters = nn.ModuleList(adapters).to(at_least_float32(student[self.roles[0]]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,); its unit is the reduction's."""
        if teacher is None or self.adapters is None:
            raise ValueError(f"Flow needs a teacher's outputs, and {BUILD_FIRST}")
        ours = [
            adapter(at_least_float32(student[role])) for adapter, role in zip(self.adapters, self.roles, strict=True)
        ]
        flows = zip(pairwise(ours), self._flows, strict=True)
        each = torch.stack([flow_loss(flow_matrix(*s), teacher[t], self.reduction) for s, t in flows])
        return each.mean(0) if self.reduction == "relative" else each.sum(0)
