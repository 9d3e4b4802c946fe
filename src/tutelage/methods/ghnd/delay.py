"""The delay of a detection: on the device alone, with its JPEG sent to a server, or split between both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from tutelage.data.modality import Pixels
from tutelage.data.split import Split
from tutelage.errors import TutelageError

JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Path:
    """A way to the result of one image.

    Attributes:
        device: seconds of computation on the device.
        payload: bytes that are sent; 0 for none.
        server: seconds of computation on the server.
        share: the share of images that are sent and computed on the server; a neural filter ends the others.
    """

    device: float
    payload: float = 0.0
    server: float = 0.0
    share: float = 1.0

    def delay(self, rate: float) -> float:
        """The mean seconds to the result at a data rate in bits a second: t_device + share (8 bytes / rate + t_server).

        Raises:
            TutelageError: the rate is not above 0.
        """
        if not rate > 0:
            raise TutelageError(f"a data rate is above 0 bits a second, got {rate}")
        return self.device + self.share * (8 * self.payload / rate + self.server)

    def crossing(self, other: Path) -> float | None:
        """The data rate in bits a second at which both take equally long; ``None`` if one is always faster."""
        bits = 8 * (self.share * self.payload - other.share * other.payload)
        seconds = other.device + other.share * other.server - self.device - self.share * self.server
        return bits / seconds if bits and seconds and bits / seconds > 0 else None


def jpeg_bytes(split: Split, rows: Sequence[int], quality: int = JPEG_QUALITY) -> float | None:
    """The mean size of images as JPEG files; ``None`` if they are no images of one or three channels."""
    if not isinstance(split.modality, Pixels) or split.inputs.shape[-1] not in (1, 3):
        return None
    sizes = []
    for row in rows:
        pixels = split.inputs[torch.tensor([row])][0].cpu().numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=quality)
        sizes.append(len(stream.getvalue()))
    return sum(sizes) / len(sizes)
