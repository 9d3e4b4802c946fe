"""The reconstruction of images from features, as an unsupervised loss."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.term import BUILD_FIRST, Term


@full_precision
def reconstruction_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """||x' - x||^2 / |x| per sample, the mean squared difference of its pixels.

    Args:
        reconstruction: x', (B, C, H, W).
        images: x, of the same shape; no gradient reaches it.

    Returns:
        (B,) in squared units of the pixels.
    """
    return (reconstruction - images.detach()).square().flatten(1).mean(1)


class Decoder(nn.Module):
    """Features to an image: enlarge twice and convolve, as often as the encoder halved the image.

    Args:
        features: (C, h, w) of the features.
        image: (C, H, W) of the image.
    """

    def __init__(self, features: tuple[int, int, int], image: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = [image[1:]]
        while sizes[-1] != features[1:]:
            sizes.append((max(sizes[-1][0] // 2, features[1]), max(sizes[-1][1] // 2, features[2])))
        self.sizes = sizes[-2::-1]
        channels = [max(features[0] // 2**number, 8) for number in range(len(sizes))]
        channels[0] = features[0]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.last = nn.Conv2d(channels[-1], image[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, H, W)."""
        for size, convolution in zip(self.sizes, self.convolutions, strict=True):
            x = F.relu(convolution(F.interpolate(x, size)))
        image: Tensor = self.last(x)
        return image


class Reconstruction(Term):
    """``reconstruction_error`` of the batch's images, reconstructed from a feature map of the student, per sample (B,).

    Args:
        role: the feature map.
        image: (C, H, W) of the images.
    """

    reads_labels = False
    reads_teacher = False

    def __init__(self, role: str, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.roles, self.image = (role,), image
        self.decoder: Decoder | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the decoder from the shape of the features."""
        if self.decoder is not None:
            return
        features = student[self.roles[0]]
        shape = tuple(features.shape[1:])
        if len(shape) != 3 or shape[1] > self.image[1] or shape[2] > self.image[2]:
            raise TutelageError(
                f"images of shape {self.image} cannot be reconstructed from {self.roles[0]} of shape {shape}; name a "
                "layer that returns feature maps, or set reconstruct=0"
            )
        self.decoder = Decoder((shape[0], shape[1], shape[2]), self.image)
        self.decoder.to(at_least_float32(features))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) in squared units of the pixels."""
        if self.decoder is None:
            raise ValueError(f"Reconstruction needs {BUILD_FIRST}")
        images = self.required(batch, "the batch, for its images").inputs
        return reconstruction_error(self.decoder(at_least_float32(student[self.roles[0]])), at_least_float32(images))
