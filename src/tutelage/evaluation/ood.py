"""Out-of-distribution detection: whether confidence separates a data set from another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.data.open import open_data
from tutelage.errors import unknown
from tutelage.evaluation.predict import predict
from tutelage.evaluation.selective import certainty
from tutelage.models.outputs import at_least_float32


@default_settings()
def ood_auroc(
    model: nn.Module, data: Data, other: str | Data, *, split: str = "test", device: torch.device | str = "cpu"
) -> float:
    """Return the AUROC of out-of-distribution detection by the maximum softmax probability, in [0, 1].

    It is the probability that the network is more confident of an image of ``data``, the positive class, than of an
    image of the other data set; ties count half. 1 is perfect separation and 0.5 none; below 0.5 the network is more
    confident of the other data set.
    Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
    ICLR 2017. Samples are ranked by ``selective.certainty``, which does not saturate where probabilities round to 1.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it is on ``device`` already.
        data: the data set of the network.
        other: another data set, or its name for ``open_data``. The images of its test split are converted to ``data``'s
            image shape by ``ImagesAs``; its labels are not used.
        split: the split of ``data``.
        device: where to compute.

    Raises:
        TutelageError: the other data set cannot be opened, or there is no such split.
    """
    from sklearn.metrics import roc_auc_score

    if split not in data.splits:
        raise unknown("split", split, data.splits)
    other_data = open_data(other)
    inside = certainty(predict(model, data.splits[split], device=device))
    outside = certainty(predict(nn.Sequential(ImagesAs(data.image_shape), model), other_data.test, device=device))
    is_inside = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)])
    # With one class certainty is infinite, which scikit-learn rejects.
    score = torch.cat([inside, outside]).nan_to_num()
    return float(roc_auc_score(is_inside.cpu().numpy(), score.cpu().numpy()))


class ImagesAs(nn.Module):
    """Convert images to another shape: (B, c, h, w) in [0, 1] to (B, C, H, W).

    If the number of channels differs, every channel is the mean of the input channels. The size is changed by bilinear
    interpolation with antialiasing; the aspect ratio is not preserved.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels, *self.size = image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return the images in the new shape, unchanged if they already have it."""
        images = at_least_float32(images)
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return images
