"""Whether a network is less sure of images from another data set than of its own."""

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
    """The chance that the network is surer of one of its own images than of one of another data set, in [0, 1].

    That is the area under the ROC curve of the maximum softmax probability with ``data``'s images as the positive
    class; a draw counts half. 1 tells all of them apart, 0.5 none, and below 0.5 the foreign images look more familiar.
    Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
    ICLR 2017. Samples are ranked by ``selective.certainty``, which does not round probabilities to 1.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it is on ``device`` already.
        data: what the network was made for.
        other: another data set, or the name that ``open_data`` takes. Its test part is brought to ``data``'s image
            shape by ``ImagesAs``; its labels are of no influence.
        split: the split of ``data``.
        device: where to compute.

    Raises:
        TutelageError: the other data set cannot be opened, or there is no such split.
    """
    from sklearn.metrics import roc_auc_score

    if split not in data.splits:
        raise unknown("split", split, data.splits)
    foreign = open_data(other)
    own = certainty(predict(model, data.splits[split], device=device))
    theirs = certainty(predict(nn.Sequential(ImagesAs(data.image_shape), model), foreign.test, device=device))
    is_own = torch.cat([torch.ones_like(own), torch.zeros_like(theirs)])
    # A network of one class is infinitely sure of everything, which scikit-learn refuses.
    score = torch.cat([own, theirs]).nan_to_num()
    return float(roc_auc_score(is_own.cpu().numpy(), score.cpu().numpy()))


class ImagesAs(nn.Module):
    """Bring images to another shape: (B, c, h, w) in [0, 1] to (B, C, H, W).

    Where the number of channels differs, their mean stands in every channel. The size is changed linearly with
    antialiasing, to the whole new frame, whatever that does to the proportions.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels, *self.size = image_shape

    def forward(self, images: Tensor) -> Tensor:
        """The images in the new shape; the very same ones where they have it already."""
        images = at_least_float32(images)
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return images
