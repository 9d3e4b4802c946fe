"""Siamese networks: features of a template, correlated with those of a larger search crop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.data.frames import crops_of
from tutelage.errors import TutelageError
from tutelage.models.networks.resnet import he_initialise

RESPONSE = 0.1
"""The initial scale of responses: 0.1 times the correlation divided by the square root of its number of products.

For AlexNet's template of 256 x 6 x 6 features that is 0.001 times the correlation, the published factor.
"""


class Siamese(nn.Module):
    """r(z, x) = a s (phi(x) * phi(z)) + b, with one backbone phi for the template z and the search crop x.

    * is the cross-correlation over positions, summed over channels, and s = 0.1 / sqrt(C h w) for templates of
    C x h x w features. The gain a, initially 1, and the offset b, initially 0, are trained, so that logits are neither
    flat nor saturated for any number of channels. Without padding, a shifted search crop shifts the response.

    Args:
        blocks: the layers of the backbone, one stage after another. They must not pad.
        search: the smallest side of search crops that the layers allow, and the usual one, in pixels.

    Attributes:
        roles: the stages, of the search crop, and ``template``, the last stage of the template crop.
        many_crops: a tracker may give it several search crops with one template.
    """

    many_crops = True

    def __init__(self, blocks: Sequence[nn.Module], search: tuple[int, int]) -> None:
        super().__init__()
        self.search = search
        self.backbone = nn.Sequential(*blocks)
        self.template = nn.Identity()  # its output is the role
        self.gain, self.offset = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.roles = {f"stage{number}": f"backbone.{number - 1}" for number in range(1, len(blocks) + 1)}
        self.roles["template"] = "template"
        he_initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Crops (B, C, S, K S + T) to responses (B, K, R, R): logits of the object's centre at each place.

        K is the number of search crops, which share the template: 1 in training.

        Raises:
            TutelageError: the inputs are no pairs, or their crops are too small.
        """
        template, search = crops_of(inputs)
        smallest, usual = self.search
        if search.shape[2] < smallest:
            raise TutelageError(
                f"this network needs search crops of {smallest} pixels or more, usually {usual}, and they have "
                f"{search.shape[2]}; open the data with --image-size {usual} (image_size={usual})"
            )
        features = self.template(self.backbone(template))  # first, so that the stages are those of the search crop
        count = inputs.shape[3] // inputs.shape[2]
        shared = features if count == 1 else features.repeat_interleave(count, 0)
        response = correlation(shared, self.backbone(search))
        response = response.view(len(template), count, *response.shape[2:])
        scale: float = RESPONSE / features[0].numel() ** 0.5
        out: Tensor = self.gain * (scale * response) + self.offset
        return out


def correlation(template: Tensor, search: Tensor) -> Tensor:
    """The cross-correlation of each sample's maps: (B, C, h, w) and (B, C, H, W) to (B, 1, H - h + 1, W - w + 1).

    One product of matrices multiplies each position of the template with each position of the search crop; each place
    of the response is the sum of those that meet there, in float32 or wider. A grouped convolution needs fewer
    products, but is slow on CPUs.
    """
    (count, _, height, width), (rows, columns) = search.shape, template.shape[2:]
    places = (height - rows + 1, width - columns + 1)
    products = template.flatten(2).transpose(1, 2) @ search.flatten(2)  # (B, h w, H W)
    down, across = (_meeting(part, whole, search.device) for part, whole in zip((rows, columns), places, strict=True))
    positions = down[:, None, :, None] * width + across[:, None]  # (h, w, places)
    met = products.gather(2, positions.reshape(1, rows * columns, -1).expand(count, -1, -1))
    return met.sum(1, dtype=torch.promote_types(met.dtype, torch.float32)).view(count, 1, *places)


def _meeting(part: int, places: int, device: torch.device) -> Tensor:
    """The position in the search crop that each position of the template meets at each place: (part, places)."""
    return torch.arange(part, device=device)[:, None] + torch.arange(places, device=device)


def block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, pool: int = 0) -> nn.Sequential:
    """A convolution without padding, batch normalisation, maybe max-pooling by 2 of windows of ``pool``, and ReLU.

    The order of pooling and ReLU does not change a value; ReLU is cheaper on the pooled maps.
    """
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        *([nn.MaxPool2d(pool, 2)] if pool else []),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers)


def check_width(name: str, width: int, multiple: int = 1) -> None:
    """Refuse a number of channels that is no positive multiple of a number."""
    if width < 1 or width % multiple:
        expected = f"a multiple of {multiple}" if multiple > 1 else "1 or more"
        raise TutelageError(f"{name}{width} has {width} channels; the number must be {expected}")
