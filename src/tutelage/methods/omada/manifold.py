"""The two frozen networks of OMADA: an autoencoder of the images, and a classifier of its latents."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, hard_labels
from tutelage.data.data import Data
from tutelage.data.loader import mix_seeds
from tutelage.data.modality import Vectors
from tutelage.data.split import Split
from tutelage.data.stratified import stratified_split
from tutelage.evaluation.temperature import fitted_temperature
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term
from tutelage.training.learner import Learner
from tutelage.training.run import Run, initial_weights

Network = TypeVar("Network", bound=nn.Module)

ADAM: dict[str, Any] = {"optimizer": "Adam", "lr": 1e-3, "weight_decay": 0.0}
"""What both networks are trained with."""

HELD_OUT = 0.2  # the share of the latents for the epoch and the temperature of the classifier
UNITS = 64  # of the hidden layers of the classifier [inferred: 2 to 3 layers]


@full_precision
def autoencoding_error(reconstruction: Tensor, images: Tensor, latents: Tensor, penalty: float) -> Tensor:
    """||G(E(x)) - x||^2 / |x| + penalty ||E(x)||^2 / |z| per sample: means over pixels and over latents.

    Args:
        reconstruction: G(E(x)), (B, C, H, W).
        images: x, of the same shape; no gradient reaches it.
        latents: E(x), (B, D).
        penalty: of the latents, at least 0.

    Returns:
        (B,) in squared units of the pixels.
    """
    error = (reconstruction - images.detach()).square().flatten(1).mean(1)
    return error + penalty * latents.square().mean(1)


class Autoencoding(Term):
    """``autoencoding_error`` of the roles ``image`` and ``latent``, per sample (B,)."""

    roles = ("image", "latent")
    reads_labels = False
    reads_teacher = False

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) in squared units of the pixels."""
        images = self.required(batch, "the batch, for its images").inputs
        return autoencoding_error(student["image"], images, student["latent"], self.penalty)


class Standardized(nn.Module):
    """Vectors (B, D) with mean 0 and standard deviation 1 in each feature."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D) to the same shape."""
        return (inputs - self.mean) / self.std


class Scaled(nn.Module):
    """Logits divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) to logits (B, C)."""
        logits: Tensor = self.network(inputs) / self.temperature
        return logits


class Manifold(NamedTuple):
    """The frozen networks, and the training samples in the latent space; all on the device of the training.

    Attributes:
        decoder: G, latents (B, D) to images (B, C, H, W).
        classifier: c, latents (B, D) to logits (B, C).
        latents: E(x) of the training split, (N, D).
        labels: its labels, (N,) int64, -1 for none; of soft labels the largest class.
        notes: results of the training, for ``result.json``.
    """

    decoder: nn.Module
    classifier: nn.Module
    latents: Tensor
    labels: Tensor
    notes: dict[str, float]


def trained_manifold(run: Run, latent: int, width: float, penalty: float, epochs: int) -> Manifold:
    """Fit the autoencoder and the classifier; arguments as in ``omada``, with the epochs of each."""
    autoencoder = trained_autoencoder(run, latent, width, penalty, epochs)
    latents, labels = latents_of(run, autoencoder, run.data.train), hard_labels(run.data.train.labels).cpu()
    classifier, notes = trained_classifier(run, latents, labels, epochs)
    device = autoencoder.mean.device
    return Manifold(
        autoencoder.module.get_submodule("decoder"),
        classifier,
        latents.to(device),
        labels.to(device),
        {f"latent_{name}": value for name, value in notes.items()},
    )


def trained_autoencoder(run: Run, latent: int, width: float, penalty: float, epochs: int) -> Tapped:
    """Fit an autoencoder on the training images, and freeze it."""
    autoencoder = run.network(f"autoencoder-{latent}x{width:g}", 1)
    learner = Learner(autoencoder, None, {"image": Autoencoding(penalty)}, name="autoencoder")
    run.fit(learner, epochs=epochs, **ADAM)
    return _frozen(autoencoder)


def latents_of(run: Run, autoencoder: Tapped, split: Split) -> Tensor:
    """E(x) of a split without augmentation, (N, D)."""
    return run.predict(autoencoder, split, ("latent",))


def trained_classifier(run: Run, latents: Tensor, labels: Tensor, epochs: int) -> tuple[nn.Module, dict[str, float]]:
    """Fit a classifier of latents, take its best epoch and its temperature on a held-out part, and freeze it.

    Args:
        run: the run.
        latents: (N, D).
        labels: (N,) int64, -1 for no label.
        epochs: the largest number.

    Returns:
        The classifier, (B, D) to logits (B, C), and its ``temperature`` and held-out ``accuracy``.
    """
    size = max(1, round(HELD_OUT * len(labels)))
    parts = [torch.from_numpy(part) for part in stratified_split(labels, size, mix_seeds(run.seed, 4) % 2**32)]
    train, held_out = (Split.of(latents[part], labels[part], Vectors()) for part in parts)
    data = Data(f"latents of {run.data.name}", run.data.classes, train, held_out, held_out)
    with initial_weights(run.seed, 2):
        hidden = [nn.Linear(latents.shape[1], UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU()]
        layers = [Standardized(*data.mean_std), *hidden, nn.Linear(UNITS, run.data.num_classes)]
        classifier = Tapped(nn.Sequential(*layers))
    learner = Learner(classifier, None, {"ce": CrossEntropy()}, name="latent classifier")
    selected = run.fit(learner, data=data, epochs=epochs, **ADAM).selected
    notes = {}
    if best := selected.get(learner.name):
        classifier.module.load_state_dict(best.state)
        notes["accuracy"] = best.score
    temperature = fitted_temperature(run.predict(classifier, held_out), hard_labels(held_out.labels))
    return _frozen(Scaled(classifier, temperature)), notes | {"temperature": temperature}


def _frozen(network: Network) -> Network:
    """The network in eval mode, without trainable parameters."""
    network.eval().requires_grad_(False)
    return network
