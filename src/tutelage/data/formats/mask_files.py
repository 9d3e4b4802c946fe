"""Images with mask files: PNGs whose values are the class numbers of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.arrays import VOID
from tutelage.data.batch import UNLABELLED
from tutelage.data.decode import centre_square, decodes, open_image, read_headers, turned
from tutelage.data.formats.folder import Files
from tutelage.errors import TutelageError

MODES = ("1", "L", "P")  # of Pillow: two levels, grey, and indices of a palette


@dataclass(frozen=True)
class MaskedImages:
    """Images and the names of their masks below the same folder; ``None`` for an image without a mask."""

    images: Files
    masks: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.masks)

    def with_unmasked(self, names: Sequence[str]) -> MaskedImages:
        """These images, and others without masks."""
        return MaskedImages(replace(self.images, names=(*self.images.names, *names)), self.masks + (None,) * len(names))

    def readable(self, image_size: int | None) -> MaskedImages:
        """The images that can be decoded, and whose masks can."""
        usable = [
            number
            for number in range(len(self))
            if decodes(self.images, number, image_size=image_size)
            and (self.masks[number] is None or decodes(self._mask_file(number), 0, image_size=image_size))
        ]
        images = replace(self.images, names=tuple(self.images.names[number] for number in usable))
        return MaskedImages(images, tuple(self.masks[number] for number in usable))

    def decoded_masks(self, image_size: int | None, classes: int | None) -> Tensor:
        """All masks, scaled and cut as the images are: (N, H, W) int16, -1 for void and for missing masks.

        Args:
            image_size: side to which images are scaled and cut; ``None`` if they have one size already.
            classes: the number of classes, if it is known.

        Raises:
            TutelageError: a mask cannot be read, has another size than its image or a class that does not exist.
        """
        sizes = [header.size for header in read_headers(self.images)]
        if image_size is None and len({*sizes}) > 1:
            other = next(number for number, size in enumerate(sizes) if size != sizes[0])
            examples = " and ".join(f"{self.images[number]} {_text(sizes[number])}" for number in (0, other))
            raise TutelageError(
                f"the images have {len({*sizes})} sizes, for instance {examples}; give --image-size N (image_size=N)"
            )
        height, width = (image_size, image_size) if image_size else sizes[0]
        masks = torch.full((len(self), height, width), UNLABELLED, dtype=torch.int16)

        def decode(number: int) -> None:
            if self.masks[number] is not None:
                masks[number] = torch.from_numpy(self._decoded_mask(number, sizes[number], image_size, classes))

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(self))))
        return masks

    def _decoded_mask(
        self, number: int, size: tuple[int, int], image_size: int | None, classes: int | None
    ) -> NDArray[np.int16]:
        """The mask (H, W) of an image of this upright size."""
        file = self._mask_file(number)
        with open_image(file, 0) as image:
            if image.mode not in MODES:
                raise TutelageError(
                    f"the mask {file[0]} has the colour mode {image.mode}; save the class numbers of its pixels as a "
                    "grey or palette PNG of 8 bits"
                )
            values = np.asarray(turned(image)).astype(np.uint8)
        if values.shape != size:
            rotated = "; its EXIF data turn the image, so turn the mask, too" if values.shape == size[::-1] else ""
            raise TutelageError(
                f"the mask {file[0]} has {_text(values.shape)} pixels (H x W) and its image {self.images[number]} "
                f"{_text(size)}{rotated or '; make them equal'}"
            )
        if image_size is not None:
            values = np.asarray(centre_square(Image.fromarray(values), image_size, Image.Resampling.NEAREST))
        highest = int(values.max(initial=0, where=values != VOID))
        if classes is not None and highest >= classes:
            raise TutelageError(
                f"the mask {file[0]} has the class {highest}, and there are {classes} classes, 0 to {classes - 1}; "
                f"name more, or save void pixels as {VOID}"
            )
        return np.where(values == VOID, UNLABELLED, values.astype(np.int16))

    def _mask_file(self, number: int) -> Files:
        return Files(self.images.root, (str(self.masks[number]),))


def _text(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
