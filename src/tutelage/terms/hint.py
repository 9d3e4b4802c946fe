"""Hints (FitNets): Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.plain import Values
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.term import BUILD_FIRST, Term

Reduction = Literal["relative", "paper", "mean"]


@full_precision
def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """The hint loss of FitNets, 1/2 ||u_h(x) - r(v_g(x))||^2 per sample: the paper's equation 3.

    Args:
        guided: r(v_g(x)), the student's features after the regressor: a map (B, C, H, W), tokens (B, T, D) or
            embeddings (B, D).
        hint: u_h(x), the teacher's features, of the same shape; no gradient reaches it.

    Returns:
        (B,), half the squared distance, summed over the map. The mean over all elements, which benchmarks have, is this
        times 2 / (C H W).

    Raises:
        TutelageError: the shapes differ.
    """
    if guided.shape != hint.shape:
        raise TutelageError(
            f"guided features {tuple(guided.shape)} and a hint {tuple(hint.shape)} cannot be compared; make the shapes "
            "equal with regressor(guided.shape[1:], hint.shape[1:])"
        )
    difference = guided - hint.detach()
    return 0.5 * difference.square().flatten(1).sum(1)


def regressor(guided: tuple[int, ...], hint: tuple[int, ...]) -> nn.Module:
    """Create the regressor r from the guided layer's features to the shape of the hint; the identity for equal shapes.

    Between maps (C, H, W) it is a convolution without padding whose kernel has N_g - N_h + 1 elements per side, 1x1 for
    equal sizes (the paper). If the guided map is smaller than the hint, which the paper does not have, it is a
    transposed convolution with that kernel. There is no final non-linearity, since a hint may be negative. Between
    embeddings (D,) it is a linear layer; between tokens (T, D), which are not in the paper either, one linear layer for
    all tokens, also for a class token and padding.

    Args:
        guided, hint: the shapes of one sample's features.

    Raises:
        TutelageError: the shapes are of different kinds, or the numbers of tokens differ.
    """
    if guided == hint:
        return nn.Identity()
    if len(guided) == len(hint) <= 2 and guided[:-1] == hint[:-1]:
        return nn.Linear(guided[-1], hint[-1])
    if len(guided) != 3 or len(hint) != 3:
        raise TutelageError(
            f"a hint needs two maps, two embeddings, or equal numbers of tokens, got the student's {guided} and the "
            f"teacher's {hint}; name other layers"
        )
    (c_in, h_in, w_in), (c_out, h_out, w_out) = guided, hint
    kernel = (abs(h_in - h_out) + 1, abs(w_in - w_out) + 1)
    if h_in >= h_out and w_in >= w_out:
        return nn.Conv2d(c_in, c_out, kernel)
    if h_in <= h_out and w_in <= w_out:
        return nn.ConvTranspose2d(c_in, c_out, kernel)
    raise TutelageError(f"no convolution maps {guided} to a hint {hint}; name other layers as hint and guided")


class Hint(Term):
    """``hint_loss`` of the student's guided layer, after a trained regressor, and the teacher's hint layer.

    Args:
        guided: the student's role.
        hint: the teacher's role.
        reduction: ``"paper"`` is ``hint_loss``; ``"mean"``, as in benchmarks, the mean over the elements of the map;
            ``"relative"`` that mean divided by the batch's mean square of the hint, so that it has no unit and is 1 on
            average for a prediction of 0. All per sample, (B,).
        use_regressor: ``"auto"`` creates a regressor if the shapes differ, as the authors' code does; ``"always"`` also
            if they are equal; ``"never"`` requires equal shapes.
    """

    reads_labels = False

    def __init__(
        self,
        guided: str,
        hint: str,
        reduction: Reduction = "paper",
        use_regressor: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        super().__init__()
        self.roles, self.hint, self.reduction, self.use_regressor = (guided,), hint, reduction, use_regressor
        self.regressor: nn.Module | None = None

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The hint layer."""
        return (self.hint,)

    def build(self, student: Values, teacher: Values | None) -> None:
        """Create the regressor from the two shapes."""
        if self.regressor is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        guided, hint = tuple(student[self.roles[0]].shape[1:]), tuple(teacher[self.hint].shape[1:])
        if self.use_regressor == "never" and guided != hint:
            raise TutelageError(
                f"the student's {self.roles[0]} {guided} and the teacher's {self.hint} {hint} differ; allow a regressor"
            )
        if self.use_regressor == "always" and guided == hint:
            self.regressor = nn.Conv2d(guided[0], hint[0], 1) if len(guided) == 3 else nn.Linear(guided[-1], hint[-1])
        else:
            self.regressor = nn.Identity() if self.use_regressor == "never" else regressor(guided, hint)
        self.regressor.to(at_least_float32(student[self.roles[0]]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the features; without unit if relative."""
        teacher, regressor = self.required(teacher), self.required(self.regressor, "a regressor", BUILD_FIRST)
        guided, target = regressor(at_least_float32(student[self.roles[0]])), at_least_float32(teacher[self.hint])
        if self.reduction == "relative":  # scaled so that no square over- or underflows
            scale = scale_of(target)
            guided, target = guided / scale, target / scale
        value = hint_loss(guided, target)
        if self.reduction == "paper":
            return value
        value = value * 2 / target[0].numel()
        if self.reduction == "mean":
            return value
        power = target.detach().square().mean()
        return value / power.where(power > 0, 1.0)
