"""Accuracy under several attacks, under the worst of them for each sample, and by distance."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.attacks.attack import Attack
from tutelage.attacks.lookup import find_attack
from tutelage.attacks.norms import NORMS, Norm
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import NonFiniteError, TutelageError, TutelageWarning
from tutelage.evaluation.perturbations import perturbation_measures
from tutelage.evaluation.predict import labelled_samples
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32
from tutelage.models.random_state import seeded

ALARMING = 0.05  # share of samples without a gradient above which an accuracy is refused [our choice]
GRID = (0.0, *(float(f"{10 ** (k / 8 - 2):.3g}") for k in range(25)))  # radii of curves: 0 and 0.01 to 10
_ROUNDING = 1e-4  # relative, of distances in float32
_COMPARED = 8  # samples of which two passes are compared

ATTACK_RESULTS = ("attacks", "robust_accuracy", "attack_curves", "attack_measures", "attack_refusals")
"""The names in ``AttackReport.as_json``."""

_REMEDY = (
    "attack without gradients (square:RADIUS), replace the gradient of the layer that has none "
    "(SurrogateGradient, or bpda=declared if the layer declares a surrogate), or, if the softmax is saturated, attack "
    "logits (pgd:RADIUS:loss=margin, den:objective=logits)"
)


@dataclass(frozen=True)
class AttackResult:
    """The result of one attack on N samples.

    Attributes:
        attack: the attack.
        success: whether an adversarial input was found and confirmed by another pass, or the sample is misclassified
            without an attack, (N,) bool.
        measures: ``perturbation_measures`` by name, (N,): 0 for a sample that is misclassified without an attack, and
            infinite for one without an adversarial input.
        blind: the share of the correctly classified samples whose gradient is 0 or NaN for this attack.
        refusal: why there is no accuracy, in one line; empty if there is one.
    """

    attack: Attack
    success: Tensor
    measures: Mapping[str, Tensor]
    blind: float
    refusal: str = ""

    @property
    def accuracy(self) -> float | None:
        """The share of samples that are correctly classified under the attack; ``None`` if it is refused."""
        return None if self.refusal else float((~self.success).double().mean())

    def within(self, norm: Norm, radius: float) -> Tensor:
        """Which samples the attack breaks within a distance, (N,) bool."""
        return self.success & (self.measures[norm] <= radius * (1 + _ROUNDING) + 1e-7)


@dataclass(frozen=True)
class AttackReport:
    """The results of several attacks on the same samples.

    All accuracies are upper bounds: another attack may break more samples. An accuracy is refused (``None``) if the
    attack follows gradients that do not exist, since it then says nothing about the network.

    Attributes:
        correct: which samples are correctly classified without an attack, (N,) bool.
        results: by text of the attack.
    """

    correct: Tensor
    results: Mapping[str, AttackResult]

    @property
    def clean(self) -> float:
        """The accuracy without an attack."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float | None:
        """The accuracy under the worst of the attacks for each sample.

        A sample is broken if any attack, also one without a radius, finds an adversarial input within the radius of
        any attack that has one. ``None`` if none has one, or if all that have one are refused.
        """
        bounded = [result for result in self.results.values() if result.attack.radius is not None]
        if all(result.refusal for result in bounded):
            return None
        broken = ~self.correct
        for threat in bounded:
            broken = broken | threat.success
            for result in self.results.values():
                broken = broken | result.within(threat.attack.norm, threat.attack.radius or 0.0)
        return float((~broken).double().mean())

    def curve(self, norm: Norm, radii: Iterable[float]) -> dict[float, float]:
        """By radius, the share of samples that no attack breaks within this distance in a norm."""
        accuracies = {}
        for radius in radii:
            broken = ~self.correct
            for result in self.results.values():
                broken = broken | result.within(norm, radius)
                if result.attack.norm == norm and result.attack.radius is not None and result.attack.radius <= radius:
                    broken = broken | result.success
            accuracies[radius] = float((~broken).double().mean())
        return accuracies

    def curves(self) -> dict[Norm, dict[float, float]]:
        """The curve of each norm in which some attack that is not refused measures.

        Its radii are those of the attacks, and, if one of them has none, ``GRID``.
        """
        curves = {}
        for norm in NORMS:
            attacks = [r.attack for r in self.results.values() if r.attack.norm == norm and not r.refusal]
            radii = {attack.radius for attack in attacks if attack.radius is not None}
            if any(attack.radius is None for attack in attacks):
                radii |= set(GRID)
            if radii:
                curves[norm] = self.curve(norm, sorted({0.0, *radii}))
        return curves

    def as_json(self) -> dict[str, Any]:
        """The values of ``ATTACK_RESULTS`` by name, as JSON.

        ``attacks`` has the accuracy of each attack with a radius, ``attack_measures`` the median of each measure over
        the samples that an attack breaks; of an attack without a radius also the share that it ``found``.
        """
        bounded = {text: result for text, result in self.results.items() if result.attack.radius is not None}
        return {
            "attacks": {text: result.accuracy for text, result in bounded.items()},
            "robust_accuracy": self.robust_accuracy,
            "attack_curves": {
                norm: {f"{radius:g}": share for radius, share in curve.items()} for norm, curve in self.curves().items()
            },
            "attack_measures": {text: self._medians(result) for text, result in self.results.items()},
            "attack_refusals": {text: result.refusal for text, result in self.results.items() if result.refusal},
        }

    def _medians(self, result: AttackResult) -> dict[str, float | None]:
        broken = result.success & self.correct
        share = float(broken.sum() / self.correct.sum().clamp(min=1))
        medians = {
            name: float(values[broken].median()) if bool(broken.any()) else None
            for name, values in result.measures.items()
        }
        return {"found": share, **medians}


@default_settings()
def evaluate_attacks(
    model: nn.Module,
    split: Split,
    attacks: Sequence[str | Attack] | Mapping[str, Attack],
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 2,
) -> AttackReport:
    """Attack every correctly classified sample of a split by each attack.

    Threat model: white box, with knowledge of the normalisation; each attack has its own norm and radius, for pixels
    in [0, 1]. What an attack returns is not trusted: success and distance are computed from the returned input, for a
    random network by a pass with new random numbers.

    Args:
        model: maps raw pixels (B, ...) in [0, 1] to logits; it is on ``device`` already.
        split: the split; samples without a label are excluded.
        attacks: attacks, or texts such as ``"pgd:0.03"`` (see ``attacks.find_attack``), with a criterion that is not
            targeted.
        device: where to compute.
        seed: of the random numbers of the attacks, which do not depend on the batch size, and of a random network,
            which do.
        batch_size: images per batch; affects only speed and memory.
        workers: number of processes that read files.

    Warns:
        TutelageWarning: the network is random, and an attack follows the gradient of a single draw.

    Raises:
        TutelageError: no sample has a label, there is no such attack, or one is targeted.
        NonFiniteError: a logit of a clean sample is NaN or infinite.
    """
    named = _named(attacks)
    split = labelled_samples(split)
    correct: list[Tensor] = []
    collected = {text: _Collected(text, attack, seed) for text, attack in named.items()}
    for number, batch in enumerate(evaluation_batches(split, device=device, batch_size=batch_size, workers=workers)):
        inputs, labels = batch.inputs, batch.targets
        with seeded(mix_seeds(seed, number)):
            if number == 0:
                warn_of_single_draws(model, inputs, named)
            right = _predictions(model, inputs) == labels
        correct.append(right.cpu())
        for part in collected.values():
            with seeded(mix_seeds(part.seed, number)):
                part.add(model, inputs, labels, right)
    every = torch.cat(correct)
    return AttackReport(every, MappingProxyType({text: part.result(every) for text, part in collected.items()}))


def warn_of_single_draws(model: nn.Module, inputs: Tensor, attacks: Mapping[str, Attack]) -> None:
    """Warn if two passes of the network on the same inputs differ and an attack follows the gradient of one draw.

    Such an attack follows the noise of the gradient, and its accuracy is far above that under a mean over draws (EOT).

    Args:
        model: the network.
        inputs: raw inputs (B, ...), of which a few are compared.
        attacks: by text.
    """
    single = [text for text, attack in attacks.items() if attack.gradient_draws == 1]
    if not single:
        return
    first, second = (_logits(model, inputs[:_COMPARED]) for _ in range(2))
    if torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        return
    warnings.warn(
        f"the network is random: two passes of the same images differ, and {', '.join(single)} follows the gradient of "
        "one draw, so that its accuracy is no evidence of robustness; attack the mean over draws (EOT): "
        "pgd:RADIUS:draws=20",
        TutelageWarning,
        stacklevel=2,
    )


def _named(attacks: Sequence[str | Attack] | Mapping[str, Attack]) -> dict[str, Attack]:
    if isinstance(attacks, Mapping):
        named = dict(attacks)
    else:
        named = {str(entry): find_attack(entry) if isinstance(entry, str) else entry for entry in attacks}
    for text, attack in named.items():
        if attack.criterion.targeted:
            raise TutelageError(
                f"{text} has a targeted criterion, whose targets a split does not have; call the attack with targets"
            )
    return named


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        return at_least_float32(model(inputs))


def _predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    logits = _logits(model, inputs)
    if not bool(logits.isfinite().all()):
        raise NonFiniteError("the logits of images without an attack are NaN or infinite; nothing can be attacked")
    return logits.argmax(1)


class _Collected:
    """What one attack has found so far."""

    def __init__(self, text: str, attack: Attack, seed: int) -> None:
        self.text, self.attack = text, attack
        self.seed = mix_seeds(seed, zlib.crc32(text.encode()))
        self.generator = torch.Generator().manual_seed(self.seed)
        self.success: list[Tensor] = []
        self.measures: list[dict[str, Tensor]] = []
        self.blind, self.failure = 0, ""

    def add(self, model: nn.Module, inputs: Tensor, labels: Tensor, right: Tensor) -> None:
        images, classes = inputs[right], labels[right]
        attacked = images
        if len(images) and not self.failure:
            try:
                self.blind += int(self.attack.blind(model, images, classes).sum())
                attacked = self.attack(model, images, classes, self.generator)
            except NonFiniteError as error:
                self.failure = str(error)
        success = torch.ones_like(right)
        everything = {
            name: torch.zeros(len(right), dtype=torch.float64) for name in perturbation_measures(attacked, attacked)
        }
        if len(images):
            broken = _predictions(model, attacked) != classes
            success[right] = broken
            for name, values in perturbation_measures(images, attacked).items():
                everything[name][right.cpu()] = values.where(broken, float("inf")).cpu()
        self.success.append(success.cpu())
        self.measures.append(everything)

    def result(self, correct: Tensor) -> AttackResult:
        """The result over all batches."""
        blind = self.blind / max(1, int(correct.sum()))
        refusal = f"{self.failure}; {_REMEDY}" if self.failure else ""
        if not refusal and blind > ALARMING:
            refusal = (
                f"{self.text} follows the gradient, and {blind:.0%} of the {int(correct.sum())} correctly classified "
                f"samples have none (0 or NaN), so that its accuracy would be no bound worth stating: {_REMEDY}"
            )
        measures = {name: torch.cat([batch[name] for batch in self.measures]) for name in self.measures[0]}
        return AttackResult(self.attack, torch.cat(self.success), MappingProxyType(measures), blind, refusal)
