"""Attacks of foolbox 3, by the name of their class; with the extra ``attacks``."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.attacks.attack import BPDA, Attack
from tutelage.attacks.criteria import margin
from tutelage.attacks.gradients import without_gradient
from tutelage.attacks.norms import Norm
from tutelage.attacks.surrogates import DECLARED, declared_surrogates
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.models.external.common import import_extra
from tutelage.models.outputs import at_least_float32
from tutelage.parsing import parse_yaml

PREFIX = "foolbox/"

_NORMS: Mapping[float, Norm] = {float("inf"): "linf", 2: "l2", 1: "l1"}
_WITHOUT_GRADIENTS = (
    "Boundary", "HopSkipJump", "Gen", "Pointwise", "Spatial", "Noise", "Linear", "BinarySearch", "Blur", "Inversion",
    "Dataset",
)  # fmt: skip


class FoolboxAttack(Attack):
    """An attack of foolbox (https://github.com/bethgelab/foolbox), with its own defaults.

    Without a radius, it must be a minimum-norm attack; it runs with ``epsilons=None``, since for these a radius only
    clips the result. The criterion must be ``Misclassified()`` or ``Targeted()`` without settings. Random attacks draw
    once per batch, so that their result depends on the batches.
    """

    name: str = Field(description="the name of its class in foolbox.attacks")
    settings: dict[str, Any] = Field(default={}, description="the arguments of its class")
    bpda: BPDA = DECLARED

    @classmethod
    def named(cls, name: str, settings: Mapping[str, Any]) -> FoolboxAttack:
        """The attack of a class, with its arguments and a radius among ``settings``; its norm is foolbox's.

        Raises:
            TutelageError: foolbox is missing, has no such attack, or does not accept the settings.
        """
        arguments = {key: parse_yaml(value) if isinstance(value, str) else value for key, value in settings.items()}
        radius, bpda = arguments.pop("radius", None), str(arguments.pop("bpda", DECLARED))
        attack, norm = _built(name, arguments)
        if radius is None and not _minimises(attack):
            raise TutelageError(f"the attack {PREFIX}{name} needs a radius; for example {PREFIX}{name}:0.03")
        if radius is not None and _minimises(attack):
            raise TutelageError(
                f"the attack {PREFIX}{name} searches for the nearest adversarial input and has no radius; leave it out"
            )
        return cls(name=name, settings=arguments, radius=radius, norm=norm, bpda=bpda)

    @property
    def gradient_draws(self) -> int | None:
        """One for attacks that use gradients."""
        return None if any(word in self.name for word in _WITHOUT_GRADIENTS) else 1

    def numbers(self, shape: torch.Size) -> int:
        """One, of which the first sample's is the seed."""
        return 1

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        library = _library()
        attack, _ = _built(self.name, self.settings)
        criteria = library.criteria
        criterion = (
            criteria.TargetedMisclassification(labels)
            if self.criterion.targeted
            else criteria.Misclassification(labels)
        )
        success = self.criterion.success(at_least_float32(model(inputs)), labels)
        substituted = declared_surrogates(model, self.bpda)
        with substituted, _frozen(model), _seeded(int(float(uniform[0, 0]) * 2**31)), torch.enable_grad():
            wrapped = library.PyTorchModel(model, bounds=(0, 1), device=inputs.device)
            try:
                adversarial, _, _ = attack(wrapped, inputs, criterion, epsilons=self.radius)
            except Exception as error:
                raise TutelageError(f"{PREFIX}{self.name} failed: {one_line(error)}; check its settings") from error
        adversarial = adversarial.detach().to(inputs)
        usable = adversarial.flatten(1).isfinite().all(1) & ~success
        result = torch.where(usable.view(-1, *[1] * (inputs.ndim - 1)), adversarial, inputs).clamp(0, 1)
        if self.radius is not None:
            return result
        reached = self.criterion.success(at_least_float32(model(result)), labels)
        return torch.where(reached.view(-1, *[1] * (inputs.ndim - 1)), result, inputs)

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where the gradient of the margin is 0 or NaN, for attacks that use gradients."""
        if self.gradient_draws is None:
            return super().blind(model, inputs, labels)
        return without_gradient(model, inputs, labels, margin, bpda=self.bpda)

    def __str__(self) -> str:
        """Its text."""
        radius = [] if self.radius is None else [f"{self.radius:g}"]
        bpda = {} if self.bpda == DECLARED else {"bpda": self.bpda}
        settings = [f"{key}={value}" for key, value in (self.settings | bpda).items()]
        return ":".join([PREFIX + self.name, *radius, *settings])


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a deprecated module of scipy
        return import_extra(PREFIX[:-1], "foolbox", extra="attacks")


def _built(name: str, arguments: Mapping[str, Any]) -> tuple[Any, Norm]:
    """An instance of a class of ``foolbox.attacks``, and its norm."""
    attacks = _library().attacks
    known = [other for other in vars(attacks) if other[0].isupper()]
    if name not in known:
        raise unknown("attack of foolbox", name, known)
    try:
        attack = getattr(attacks, name)(**arguments)
        order = attack.distance.p
    except Exception as error:  # also a missing package, which some of them need
        raise TutelageError(f"the attack {PREFIX}{name} cannot be used: {one_line(error)}") from error
    if order not in _NORMS:
        raise TutelageError(f"the attack {PREFIX}{name} is for the norm L{order}; the norms are linf, l2 and l1")
    return attack, _NORMS[order]


def _minimises(attack: Any) -> bool:
    return isinstance(attack, _library().attacks.base.MinimizationAttack)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of parameters, which foolbox's backward passes would accumulate."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that foolbox draws from, and restore them."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
