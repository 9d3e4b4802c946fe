"""Classifiers on the stages of a frozen teacher of texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.data.batch import hard_labels
from tutelage.errors import TutelageError
from tutelage.models.random_state import seeded
from tutelage.models.tapped import Tapped
from tutelage.models.tokens import masked_mean, text_mask
from tutelage.terms import CrossEntropy, OnRole
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@dataclass(frozen=True, slots=True)
class ProbedTeacher:
    """A teacher with a classifier on each of its stages.

    Attributes:
        model: the network that returns them.
        roles: of their logits, (B, C), from the first stage to the last, which has the teacher's own logits.
        losses: the mean cross-entropy of each on the training split.
    """

    model: Tapped
    roles: tuple[str, ...]
    losses: tuple[float, ...]


class Probed(nn.Module):
    """A frozen teacher, and classifiers of the mean over the text of its stages.

    Args:
        teacher: from token numbers to logits.
        stages: its roles (B, T, D) that get a classifier.
        widths: D of each.
        num_classes: outputs of the classifiers.
        padding: the token that fills shorter texts.
    """

    def __init__(
        self, teacher: Tapped, stages: tuple[str, ...], widths: tuple[int, ...], num_classes: int, padding: int
    ) -> None:
        super().__init__()
        self.teacher, self.stages, self.padding = teacher, stages, padding
        self.probes = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes)) for width in widths]
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) to the teacher's logits (B, C); the outputs of the classifiers are those of layers."""
        features: dict[str, Tensor] = self._features(tokens)
        mask = text_mask(tokens, self.padding)
        for stage, probe in zip(self.stages, self.probes, strict=True):
            probe(masked_mean(features[stage], mask))
        return features["logits"]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _features(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = self.teacher.tap(tokens, (*self.stages, "logits"), eager=True)
        return {role: outputs[role] for role in (*self.stages, "logits")}


def train_probes(run: Run, teacher: Tapped, padding: int, epochs: int) -> ProbedTeacher:
    """Train the classifiers on all stages of a teacher but the last; the teacher does not change.

    Args:
        run: the run; the first fit is this one, if the teacher has more than one stage.
        teacher: the teacher.
        padding: the token that fills shorter texts.
        epochs: of the fit.

    Raises:
        TutelageError: the teacher has no stages of tokens.
    """
    run.trace(teacher)
    example = run.data.modality.example(2, run.data.input_shape, teacher.mean.device)
    with torch.no_grad():
        outputs = teacher.eval().tap(example, (*teacher.stages, "logits"))
    stages = tuple(role for role in teacher.stages if outputs[role].ndim == 3)
    if not stages:
        raise TutelageError(
            f"nas_kd reads the layers of its teacher, and {type(teacher.module).__name__} has none of shape (B, T, D); "
            'name some, for example roles={"stage1": "encoder.layer.0"}'
        )
    widths = tuple(outputs[role].shape[2] for role in stages[:-1])
    with seeded(run.seed):
        probed = Probed(teacher, stages[:-1], widths, outputs["logits"].shape[1], padding)
    roles = tuple(f"probe{number + 1}" for number in range(len(widths)))
    model = Tapped(probed, roles={role: f"probes.{number}" for number, role in enumerate(roles)})
    if roles:
        terms = {role: OnRole(role, CrossEntropy()) for role in roles}
        run.fit(
            Learner(
                model, None, terms, trainable=lambda name: name.startswith("probes."), evaluated=False, name="probes"
            ),
            epochs=epochs,
            ema=None,  # an average of a frozen network would differ by rounding
        )
    roles = (*roles, "logits")
    logits = run.predict(model, run.data.train, roles).chunk(len(roles), 1)
    labels = hard_labels(run.data.train.labels).cpu()
    labelled = (labels >= 0).sum().clamp(min=1)
    losses = tuple(float(cross_entropy(values, labels).sum() / labelled) for values in logits)
    return ProbedTeacher(model, roles, losses)
