"""The base class of attacks: frozen values that turn inputs into adversarial ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tutelage.attacks.criteria import Criterion, Misclassified
from tutelage.attacks.norms import NORMS, Norm
from tutelage.errors import TutelageError
from tutelage.fields import Fields
from tutelage.models.modes import eval_mode

Radius = Annotated[float, Field(ge=0, description="the largest distance, for pixels in [0, 1]")]
Draws = Annotated[int, Field(ge=1, description="passes per step of a random network, whose gradient is averaged")]
BPDA = Annotated[
    str, Field(description="the surrogate gradient of layers that declare some: declared (the first), none, or a name")
]


class Attack(Fields):
    """A frozen value with the settings of an attack; calling it attacks a batch.

    Two kinds: an attack with a ``radius`` searches for any adversarial input within this distance; one whose ``radius``
    is ``None`` searches for the nearest one, at any distance. Both return inputs only: whoever needs success or
    distance computes them from these (see ``evaluation.evaluate_attacks``).

    A subclass defines ``search``, and ``numbers`` if it is random. In a file of ``attacks/algorithms/`` that sets
    ``ATTACK`` to the subclass it is found by name: ``find_attack("pgd:0.03")``.
    """

    noun: ClassVar[str] = "the attack"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    """The norms that it supports."""

    criterion: Criterion = Field(default=Misclassified(), description="when an attacked input counts as adversarial")
    radius: float | None = Field(default=None, description="the largest distance; none for the nearest input")
    norm: Norm = Field(default="linf", description="the norm of the distance: linf, l2 or l1")

    @property
    def gradient_draws(self) -> int | None:
        """Over how many passes of a random network its gradient is averaged; ``None`` without gradients."""
        return getattr(self, "draws", None)

    @model_validator(mode="after")
    def _supported_norm(self) -> Self:
        if self.norm not in self.norms:
            raise TutelageError(f"{type(self).__name__} supports the norm {' or '.join(self.norms)}, got {self.norm}")
        if self.norm == "linf" and self.radius is not None and self.radius > 1:
            raise TutelageError(
                f"a radius is for pixels in [0, 1], and at most 1 in the maximum norm, got {self.radius:g}; "
                f"in levels of 255, divide it: {self.radius / 255:.3g}"
            )
        return self

    def __call__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Attack each input.

        The network runs in eval mode; its modes, buffers and gradients do not change. The caller may be in ``no_grad``
        or ``inference_mode``. All random numbers of a sample are drawn at once, so that the result does not depend on
        how the samples are divided into batches.

        Args:
            model: maps raw pixels (B, ...) in [0, 1] to logits (B, C); the normalisation is inside.
            inputs: (B, ...) pixels in [0, 1], float.
            labels: (B,) int64 classes, 0 .. C - 1: the true ones, or the targets of a targeted criterion.
            generator: of the random numbers, on the CPU; ``None`` for torch's global generator.

        Returns:
            (B, ...), detached, in [0, 1]. An input that meets the criterion already, or to which an attack without a
            radius found no adversarial input, is returned unchanged.

        Raises:
            TutelageError: the inputs are not pixels in [0, 1], or the labels no classes of the network.
            NonFiniteError: a logit or a gradient is NaN or infinite.
        """
        _check(inputs, labels)
        uniform = torch.rand(len(inputs), self.numbers(inputs.shape[1:]), generator=generator)
        with (
            eval_mode(model),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(inputs.device.type, enabled=False),
        ):
            inputs, labels = inputs.detach().clone(), labels.clone()  # inference tensors have no gradients
            if not len(inputs):
                return inputs
            classes = model(inputs[:1]).shape[1]
            self.criterion.check(classes)
            if int(labels.max()) >= classes:
                raise TutelageError(
                    f"a label to attack is {int(labels.max())}, and the network has {classes} classes; give labels "
                    f"from 0 to {classes - 1}"
                )
            return self.search(model, inputs, labels, uniform.to(inputs))

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """The attack, with the arguments and the result of a call; copies may be changed in place.

        Args:
            model: in eval mode, without gradients.
            inputs, labels: see the call.
            uniform: (B, ``numbers``) in [0, 1), the random numbers of each sample.
        """
        raise NotImplementedError(f"{type(self).__name__} must define search()")

    def numbers(self, shape: torch.Size) -> int:
        """How many random numbers a sample of this shape needs."""
        return 0

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """For which samples the gradient that the attack follows is 0 or NaN at the input: (B,) bool.

        There it fails for a technical reason, which says nothing about the network. Always False without gradients.
        """
        return torch.zeros_like(labels, dtype=torch.bool)

    def __str__(self) -> str:
        """The text from which ``find_attack`` makes this value, apart from fields that only Python can set."""
        name = type(self).__module__.rpartition(".")[2]
        fields = {field: getattr(self, field) for field in type(self).model_fields}
        changed = [
            f"{field}={value:g}" if isinstance(value, float) else f"{field}={getattr(value, '__name__', value)}"
            for field, value in fields.items()
            if field not in ("radius", "criterion") and value != type(self).model_fields[field].default
        ]
        return ":".join([name, *([] if self.radius is None else [f"{self.radius:g}"]), *changed])


def _check(inputs: Tensor, labels: Tensor) -> None:
    if not inputs.is_floating_point():
        raise TutelageError(f"an attack needs float inputs in [0, 1], got {inputs.dtype}; divide pixels by 255")
    if labels.ndim != 1 or len(labels) != len(inputs) or labels.is_floating_point():
        raise TutelageError(
            f"an attack needs one class per input, ({len(inputs)},) int64, got {tuple(labels.shape)} {labels.dtype}"
        )
    if not len(inputs):
        return
    low, high = (float(value) for value in inputs.aminmax())
    if not (low >= 0 and high <= 1):
        raise TutelageError(
            f"an attack needs inputs in [0, 1], and these range from {low:g} to {high:g}; put the normalisation into "
            "the network, for example by Tapped(network, mean, std)"
        )
    if int(labels.min()) < 0:
        raise TutelageError(f"a label to attack is {int(labels.min())}; leave out samples without a label")
