"""Images in pages that need no other file."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image

from tutelage.data import Split
from tutelage.data.modality import Pixels

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The content security policy of a page with images and without scripts."""

_SIDE = 96  # pixels: images are scaled to at least this size, or at most twice of it


def data_uri(split: Split, row: int) -> str:
    """A sample as a PNG in a data URI; empty if it is not an image."""
    if not isinstance(split.modality, Pixels):
        return ""
    pixels = split.inputs[torch.tensor([row])][0].cpu().numpy()
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels[:, :, :3])
    largest = max(image.size)
    if largest < _SIDE:  # whole multiples, so that pixels stay square
        factor = -(-_SIDE // largest)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((2 * _SIDE, 2 * _SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
