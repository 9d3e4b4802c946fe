"""Images made of random latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError
from tutelage.evaluation.generative import evaluate_generator
from tutelage.models.generator import Generator, is_generator
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Compute, Curve, Metric, Task


class Generation(Task):
    """Images like those of the data: how near the distribution of a generator's images is to theirs."""

    roles: ClassVar[tuple[str, ...]] = ()  # no epoch is selected: the last generator is kept
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "frechet_distance": Metric("Fréchet distance to the test images", "lower"),
            "coverage": Metric("share of test images that have a generated one nearby", "higher", percent=True),
            "teacher_frechet_distance": Metric("the teacher's Fréchet distance", None),
        }
    )

    def recognises(self, module: nn.Module) -> bool:
        """A network that names the length of its ``latent`` and makes images of latents."""
        return is_generator(module)

    def check_data(self, data: Data) -> None:
        """Images, whatever their labels."""
        _ = data.image_shape

    def check_network(self, model: Tapped) -> None:
        """A generator."""
        if not isinstance(model, Generator):
            raise TutelageError(
                f"{type(model.module).__name__} is no generator, and this method is for generation; give a network "
                "that makes images of latents (B, latent) and has latent, their length, as an attribute"
            )

    def wrap(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Tapped:
        """A generator makes its pixels itself: nothing is normalised."""
        return Generator(module)

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """See ``evaluate_generator``."""
        name = next(name for name, candidate in data.splits.items() if candidate is split)
        other = None if teacher is None else _generator(teacher)
        return evaluate_generator(_generator(model), data, split=name, device=compute.device, teacher=other)

    def example(self, model: Tapped, data: Data, count: int = 1) -> Tensor:
        """Latents."""
        return torch.full((count, _generator(model).latent), 0.5, device=model.mean.device)


def _generator(model: nn.Module) -> Generator:
    if not isinstance(model, Generator):
        raise TutelageError(f"{type(model).__name__} makes no images; give a generator")
    return model


task = Generation()
