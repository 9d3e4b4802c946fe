"""The images of a data set of waveforms, and the networks on either side of the front that makes them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.attacks import SurrogateGradient
from tutelage.data import CropsAndFlips, Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.data.modality import Pixels
from tutelage.errors import TutelageError
from tutelage.methods.audio_adversarial.fronts.sound_image import SoundImage
from tutelage.models.attach import detach
from tutelage.models.tapped import Tapped

BATCH = 16  # clips at a time


def image_data(data: Data, front: SoundImage) -> Data:
    """The data with each waveform replaced by its image, which is rounded to 256 levels; nothing is augmented.

    Args:
        data: waveforms.
        front: without normalisation.
    """
    train, test = (_image_split(split, front) for split in (data.train, data.test))
    validation = None if data.validation is None else _image_split(data.validation, front)
    return replace(data, views=CropsAndFlips(), train=train, test=test, validation=validation)


@torch.no_grad()
def _image_split(split: Split, front: SoundImage) -> Split:
    batches = evaluation_batches(split, batch_size=BATCH, workers=0)
    images = torch.cat([(255 * front.images(batch.inputs)).round().to(torch.uint8) for batch in batches])
    return replace(split, inputs=images.permute(0, 2, 3, 1).contiguous(), modality=Pixels())


def front_of(network: nn.Module) -> tuple[str, SoundImage]:
    """The name of the front in a network, and the front.

    Raises:
        TutelageError: it has none.
    """
    for name, module in network.named_modules():
        if isinstance(module, SoundImage):
            return name, module
    raise TutelageError(
        f"{type(network).__name__} has no front that makes images of waveforms; give a network that audio_adversarial "
        "trained on waveforms"
    )


def image_network(model: Tapped) -> Tapped:
    """A copy of a network of waveforms without its front: from images in [0, 1], (B, 1, H, W), to logits."""
    network = copy.deepcopy(model.module)
    name, front = front_of(network)
    layer, _, child = name.rpartition(".")
    detach(network, layer, child)
    return Tapped(network, (front.image_mean,), (front.image_std,)).train(model.training)


class WaveformNetwork(nn.Module):
    """A network of waveforms with inputs u = (x + 1) / 2 in [0, 1], as attacks need.

    A radius of r for u is an amplitude of 2 r for x. The clip at -80 decibels, which has no gradient, has that of the
    identity (BPDA).

    Args:
        model: from waveforms (B, 1, L) in [-1, 1] to logits, with a front; it is copied.
    """

    def __init__(self, model: Tapped) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        front = front_of(self.model)[1]
        front.clip = SurrogateGradient(front.clip)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 1, L) in [0, 1] to logits (B, C)."""
        logits: Tensor = self.model(2 * inputs - 1)
        return logits


def signal_to_noise(waves: Tensor, perturbed: Tensor) -> Tensor:
    """20 log10(||x|| / ||x' - x||) per clip in decibels, (B,); infinite where nothing changed."""
    signal, noise = (values.flatten(1).norm(dim=1) for values in (waves, perturbed - waves))
    return 20 * torch.log10(signal / noise)
