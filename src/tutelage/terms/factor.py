"""Factor transfer (FT): Kim, Park, Kwak 2018, arXiv 1802.04977."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import pooled_to_smaller
from tutelage.terms.stages import StagePairs
from tutelage.terms.term import BUILD_FIRST, Term
from tutelage.terms.unit import unit


@full_precision
def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean absolute difference of two factors, F_S / ||F_S||_2 - F_T / ||F_T||_2, per sample.

    RepDistiller's ``FactorTransfer`` compares the means of the squares over channels instead.

    Args:
        student, teacher: factors (B, C, H, W) of one shape. No gradient reaches the teacher's.

    Returns:
        (B,), without unit: the paper's L1 norm divided by C H W.

    Raises:
        TutelageError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"factors of shapes {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared; make the shapes "
            "equal"
        )
    s, t = (unit(factors.flatten(1) / scale_of(factors)) for factors in (student, teacher.detach()))
    return F.l1_loss(s, t, reduction="none").mean(1)


class Paraphraser(nn.Module):
    """An autoencoder of a teacher's maps, whose code is the factor: three 3x3 convolutions and their mirror image.

    Args:
        channels: of the teacher's maps.
        factors: channels of the factor.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _convolutions(channels, channels, factors, factors)
        self.decoder = _convolutions(factors, factors, channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """The factor of maps (B, C, H, W), (B, factors, H, W)."""
        factor: Tensor = self.encoder(maps)
        return factor


def _convolutions(*channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class Paraphrase(Term):
    """The loss that trains a paraphraser: the mean squared error of the reconstructed maps, per sample (B,).

    It reads the teacher alone.

    Args:
        teacher_role: the teacher's maps.
        rate: channels of the factor, as a share of the teacher's.
    """

    reads_labels = False
    roles = ()

    def __init__(self, teacher_role: str, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 < rate < float("inf"):
            raise TutelageError(f"the share of the factor's channels must be a finite number above 0, got {rate}")
        self.teacher_role, self.rate = teacher_role, rate
        self.paraphraser: Paraphraser | None = None

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's maps."""
        return (self.teacher_role,)

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the paraphraser.

        Raises:
            TutelageError: features that are no maps.
        """
        if self.paraphraser is not None or teacher is None:
            return
        maps = at_least_float32(teacher[self.teacher_role])
        if maps.ndim != 4:
            raise TutelageError(f"FT needs maps (B, C, H, W), got {tuple(maps.shape)}; name another layer")
        self.paraphraser = Paraphraser(maps.shape[1], max(1, round(self.rate * maps.shape[1]))).to(maps)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the teacher's features."""
        paraphraser = self.required(self.paraphraser, "a paraphraser", BUILD_FIRST)
        maps = at_least_float32(self.required(teacher)[self.teacher_role].detach())
        errors: Tensor = (paraphraser.decoder(paraphraser(maps)) - maps).square()
        return errors.flatten(1).mean(1)


class FactorTransfer(StagePairs):
    """``factor_distance`` of a trained translation of the student's map and the teacher's factor, per sample (B,).

    Args:
        pair: (student role, teacher role).
        paraphrase: holds the trained paraphraser, which stays as it is.
    """

    def __init__(self, pair: tuple[str, str], paraphrase: Paraphrase) -> None:
        super().__init__((pair,))
        self._paraphrase = [paraphrase]  # in a list, so that its weights are no parameters of this term
        self.translator: nn.Module | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the translator."""
        if self.translator is not None or teacher is None:
            return
        ((maps, target),) = self.maps(*self.outputs(student, teacher))
        factors = self._factor(target).shape[1]
        self.translator = _convolutions(maps.shape[1], maps.shape[1], factors, factors).to(maps)

    def _factor(self, maps: Tensor) -> Tensor:
        paraphraser = self.required(self._paraphrase[0].paraphraser, "a paraphraser", "train it first")
        factor: Tensor = paraphraser.to(maps.device).eval()(maps)
        return factor

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        translator = self.required(self.translator, "a translator", BUILD_FIRST)
        ((maps, target),) = self.maps(student, teacher)
        return factor_distance(*pooled_to_smaller(translator(maps), self._factor(target).detach()))
