"""The generation task: images generated from random latents."""

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
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.task import Compute, Task


class Generation(Task):
    """Generation of images, evaluated by the distance between the distributions of generated and test images."""

    roles: ClassVar[tuple[str, ...]] = ()  # no epoch is selected: the final generator is saved
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "frechet_distance": Metric("Fréchet distance to the test images", "lower"),
            "coverage": Metric("share of test images that have a generated one nearby", "higher", percent=True),
            "teacher_frechet_distance": Metric("the teacher's Fréchet distance", None),
        }
    )

    def recognises(self, module: nn.Module) -> bool:
        """Whether the network generates images from latents, whose length is its attribute ``latent``."""
        return is_generator(module)

    def check_data(self, data: Data) -> None:
        """Require images; labels are not used."""
        _ = data.image_shape

    def check_network(self, model: Tapped) -> None:
        """Require a generator."""
        if not isinstance(model, Generator):
            raise TutelageError(
                f"{type(model.module).__name__} is no generator, and this method is for generation; give a network "
                "that generates images from latents (B, latent) and has their length as an attribute, latent"
            )

    def wrap(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Tapped:
        """Wrap a generator; its inputs are latents, which are not normalised."""
        return Generator(module)

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """See ``evaluate_generator``."""
        name = next(name for name, candidate in data.splits.items() if candidate is split)
        teacher_generator = None if teacher is None else _generator(teacher)
        return evaluate_generator(_generator(model), data, split=name, device=compute.device, teacher=teacher_generator)

    def example(self, model: Tapped, data: Data, count: int = 1) -> Tensor:
        """Example latents, (count, latent)."""
        return torch.full((count, _generator(model).latent), 0.5, device=model.mean.device)

    def samples(self, model: Tapped, data: Data, split: Split, count: int = 128) -> Tensor:
        """One constant latent: the operations of a generator do not depend on data."""
        return self.example(model, data)


def _generator(model: nn.Module) -> Generator:
    if not isinstance(model, Generator):
        raise TutelageError(f"{type(model).__name__} makes no images; give a generator")
    return model


task = Generation()
