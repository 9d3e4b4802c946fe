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
    """The FSP matrix of two maps of one network, G_ij = 1/(h w) sum_{s,t} F1_{i,s,t} F2_{j,s,t}.

    Args:
        first, second: (B, m, h, w) and (B, n, h', w'); if the sizes differ, the larger is max-pooled to the
            smaller (RepDistiller averages).

    Returns:
        (B, m, n), in squared units of the features.

    Raises:
        TutelageError: they are not maps of the same samples.
    """
    if first.ndim != 4 or second.ndim != 4 or len(first) != len(second):
        raise TutelageError(
            f"a flow matrix needs two maps (B, C, H, W) of one network, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}; pass tokens (B, T, D) as maps, tokens.transpose(1, 2).unsqueeze(3)"
        )
    size = [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]
    one, two = (_pooled(features, size).flatten(2) for features in (first, second))
    return one @ two.transpose(1, 2) / one.shape[2]


def _pooled(features: Tensor, size: list[int]) -> Tensor:
    return features if list(features.shape[2:]) == size else F.adaptive_max_pool2d(features, size)


@full_precision
def flow_loss(student: Tensor, teacher: Tensor, reduction: Reduction = "paper") -> Tensor:
    """The squared distance of two flow matrices, ||G^T - G^S||_F^2, per sample: the summand of the paper's equation 2.

    ``"paper"`` sums over both channel axes. ``"mean"``, as in benchmarks, takes the mean over them (m n times smaller).
    ``"relative"`` divides the sum by the batch's mean of ||G^T||_F^2, so that it has no unit and is 1 on average for
    G^S = 0.

    Args:
        student, teacher: flow matrices (B, m, n); no gradient reaches the teacher's.
        reduction: "paper", "mean" or "relative".

    Returns:
        (B,).

    Raises:
        TutelageError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"the student's flow matrix {tuple(student.shape[1:])} and the teacher's {tuple(teacher.shape[1:])} cannot "
            "be compared: FSP needs equal numbers of channels"
        )
    target = teacher.detach()
    if reduction == "relative":  # scaled so that no square over- or underflows
        scale = scale_of(target)
        student, target = student / scale, target / scale
    value = (target - student).square().sum((1, 2))
    if reduction == "relative":
        energy = target.square().sum((1, 2)).mean()
        return value / energy.where(energy > 0, 1.0)
    return value if reduction == "paper" else value / target[0].numel()


class Flow(Term):
    """``flow_loss`` between consecutive layers, per sample (B,).

    Its value is the sum over pairs of consecutive layers with ``"paper"`` and ``"mean"``, and their mean with
    ``"relative"``. Once built, the term reads the teacher's flow matrices, not its layers.

    Args:
        layers: (student role, teacher role), first to last, at least two.
        reduction: as in ``flow_loss``.
        adapter: with ``"auto"``, a trained 1x1 convolution maps a student's layer to the teacher's number of channels
            if they differ; it is discarded with the term and is not in the paper. ``"never"`` raises an error instead.
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
                f"FSP compares the flow between two layers, and the two networks have fewer in common ({names}); "
                'name more layers, for example roles={"stem": "conv1", "stage1": "layer1"}'
            )
        self.layers, self.reduction, self.adapter = layers, reduction, adapter
        self.roles = tuple(student for student, _ in layers)
        self.adapters: nn.ModuleList | None = None
        self._flows = tuple(DerivedRole(flow_matrix, *roles) for roles in pairwise(teacher for _, teacher in layers))

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's layers; once built, the derived roles of the flow between them."""
        return self._flows if self.adapters is not None else tuple(teacher for _, teacher in self.layers)

    def build(self, student: Values, teacher: Values | None) -> None:
        """Create an adapter for each layer from the numbers of channels."""
        if self.adapters is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        adapters: list[nn.Module] = []
        for role, teacher_role in self.layers:
            channels, target = student[role].shape[1], teacher[teacher_role].shape[1]
            if channels != target and self.adapter == "never":
                raise TutelageError(
                    f"the student's {role} has {channels} channels and the teacher's {teacher_role} {target}; FSP "
                    "needs equal numbers: choose a student that differs in depth alone, or adapter=auto"
                )
            adapters.append(nn.Identity() if channels == target else nn.Conv2d(channels, target, 1, bias=False))
        self.adapters = nn.ModuleList(adapters).to(at_least_float32(student[self.roles[0]]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the flow matrix; without unit if relative."""
        teacher, adapters = self.required(teacher), self.required(self.adapters, "adapters", BUILD_FIRST)
        layers = [adapter(at_least_float32(student[role])) for adapter, role in zip(adapters, self.roles, strict=True)]
        flows = zip(pairwise(layers), self._flows, strict=True)
        losses = torch.stack([flow_loss(flow_matrix(*pair), teacher[flow], self.reduction) for pair, flow in flows])
        return losses.mean(0) if self.reduction == "relative" else losses.sum(0)
