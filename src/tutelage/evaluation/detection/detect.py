"""The detections of a network in all images of a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.split import Split
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import predict
from tutelage.models.centre_points import GEOMETRY, TOP, decode

BATCH = 64  # images in a forward pass


def detect(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device | str,
    amp: torch.dtype | None = None,
    workers: int = 2,
    top: int = TOP,
) -> Tensor:
    """The most certain detections in each image, decoded on the device a batch at a time.

    Args:
        model: images (B, C, H, W) in [0, 1] to a map of centre points (``models.centre_points``); on ``device``.
        split: images.
        device: where to compute.
        amp: the dtype of autocast; ``None`` for that of the model.
        workers: processes that read files.
        top: at most so many detections of an image.

    Returns:
        (N, K, 6) float32 on the device of (x1, y1, x2, y2, score, class) by falling score, in pixels of the images of
        the split; class -1 for none.

    Raises:
        NonFiniteError: an output is NaN or infinite.
        TutelageError: the network returns no map of centre points.
    """
    return predict(_Decoded(model, top), split, device=device, batch_size=BATCH, amp=amp, workers=workers)


class _Decoded(nn.Module):
    """Images (B, C, H, W) to the detections (B, K, 6) of a network."""

    def __init__(self, model: nn.Module, top: int) -> None:
        super().__init__()
        self.model, self.top = model, top

    def forward(self, images: Tensor) -> Tensor:
        outputs: object = self.model(images)
        if not isinstance(outputs, Tensor) or outputs.ndim != 4 or outputs.shape[1] <= GEOMETRY:
            got = f"outputs of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TutelageError(
                f"the network returns {got}; a detector returns a map (B, classes + {GEOMETRY}, h, w): heat maps, "
                "width and height, and the centre's place in its cell"
            )
        detections = decode(outputs, (images.shape[2], images.shape[3]), self.top)
        # A NaN in the map need not reach the most certain detections.
        finite = outputs.flatten(1).isfinite().all(1)[:, None, None]
        return detections.where(finite, torch.nan)
