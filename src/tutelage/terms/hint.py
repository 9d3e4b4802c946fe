"""Hints: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550."""

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
    """1/2 ||u_h(x) - r(v_g(x))||^2 per sample: the paper's equation 3, summed over the map.

    Args:
        guided: r(v_g(x)), (B, C, H, W), tokens (B, T, D) or embeddings (B, D).
        hint: u_h(x), of the same shape; no gradient reaches it.

    Returns:
        (B,), half the squared distance. The benchmarks' mean over all elements is this times 2 / (C H W).

    Raises:
        TutelageError: for two different shapes.
    """
    if guided.shape != hint.shape:
        raise TutelageError(
            f"guided features {tuple(guided.shape)} and a hint {tuple(hint.shape)} cannot be compared; bring them to "
            "one shape with regressor(guided.shape[1:], hint.shape[1:])"
        )
    difference = guided - hint.detach()
    return 0.5 * difference.square().flatten(1).sum(1)


def regressor(guided: tuple[int, ...], hint: tuple[int, ...]) -> nn.Module:
    """The convolution r that takes the guided layer's map (C, H, W) to the hint's shape; identity where they agree.

    Without padding, its kernel is N_g - N_h + 1 a side: 1x1 for equal sizes (the paper). The paper has no guided map
    smaller than its hint; there the same kernel is transposed, which is ours. No final non-linearity: a hint may be
    negative here, which a ReLU could not reach. Between embeddings (D,) it is linear. Between tokens (T, D), which are
    ours too, it is one linear map for all tokens, each of which counts, a class token and padding among them.

    Raises:
        TutelageError: the shapes are of different kinds, or one has other tokens than the other.
    """
    if guided == hint:
        return nn.Identity()
    if len(guided) == len(hint) <= 2 and guided[:-1] == hint[:-1]:
        return nn.Linear(guided[-1], hint[-1])
    if len(guided) != 3 or len(hint) != 3:
        raise TutelageError(
            f"a hint needs two maps, two embeddings, or as many tokens on both sides, got the student's {guided} and "
            f"the teacher's {hint}; name other layers"
        )
    (c_in, h_in, w_in), (c_out, h_out, w_out) = guided, hint
    kernel = (abs(h_in - h_out) + 1, abs(w_in - w_out) + 1)
    if h_in >= h_out and w_in >= w_out:
        return nn.Conv2d(c_in, c_out, kernel)
    if h_in <= h_out and w_in <= w_out:
        return nn.ConvTranspose2d(c_in, c_out, kernel)
    raise TutelageError(f"no convolution takes a map {guided} to a hint {hint}; name other layers as hint and guided")


class Hint(Term):
    """The guided layer of the student, through a trained regressor, against the hint layer of the teacher.

    Args:
        guided: the student's role. hint: the teacher's role.
        reduction: ``"paper"`` is ``hint_loss``; ``"mean"`` the benchmarks' mean over the elements of the map;
            ``"relative"`` that mean divided by the batch's mean square of the hint, which has no unit: 1 where 0 is
            predicted, whatever the size and the scale of the maps. All per sample, (B,).
        use_regressor: ``"auto"`` builds one where the shapes differ, as the authors' code does; ``"always"`` a
            convolution also where they agree; ``"never"`` none, shapes must then agree.
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
        """Make the regressor from the two shapes."""
        if self.regressor is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        ours, theirs = tuple(student[self.roles[0]].shape[1:]), tuple(teacher[self.hint].shape[1:])
        if self.use_regressor == "never" and ours != theirs:
            raise TutelageError(
                f"the student's {self.roles[0]} {ours} and the teacher's {self.hint} {theirs} differ; allow a regressor"
            )
        if self.use_regressor == "always" and ours == theirs:
            self.regressor = nn.Conv2d(ours[0], theirs[0], 1) if len(ours) == 3 else nn.Linear(ours[-1], theirs[-1])
        else:
            self.regressor = nn.Identity() if self.use_regressor == "never" else regressor(ours, theirs)
        self.regressor.to(at_least_float32(student[self.roles[0]]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), squared feature units; without a unit if relative."""
        if teacher is None or self.regressor is None:
            raise ValueError(f"Hint needs a teacher's outputs, and {BUILD_FIRST}")
        guided, target = self.regressor(at_least_float32(student[self.roles[0]])), at_least_float32(teacher[self.hint])
        if self.reduction == "relative":  # no square of it is to over- or underflow
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
