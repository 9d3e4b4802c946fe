"""Images in pages that need no other file."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from tutelage.data import Split
from tutelage.data.modality import Pixels

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The content security policy of a page with images and without scripts."""

_SIDE = 96  # pixels: images are scaled to at least this size, or at most twice of it


def data_uri(split: Split, row: int) -> str:
    """A sample as a PNG in a data URI; empty if it is not an image."""
    if not isinstance(split.modality, Pixels):
        return ""
    return png_uri(split.inputs[torch.tensor([row])][0])


def png_uri(pixels: Tensor, largest: int = 2 * _SIDE) -> str:
    """An image (H, W, C) uint8 as a PNG of sides up to ``largest`` pixels in a data URI."""
    channels = pixels.cpu().numpy()
    image = Image.fromarray(channels.squeeze(2) if channels.shape[2] == 1 else channels[:, :, :3])
    side = max(image.size)
    if side < _SIDE:  # whole multiples, so that pixels stay square
        factor = -(-_SIDE // side)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((largest, largest))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
