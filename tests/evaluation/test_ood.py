"""Out-of-distribution detection: AUROC against pair counts, and conversion of image shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.data import Data, Split, open_data
from tutelage.evaluation import ood_auroc
from tutelage.evaluation.ood import ImagesAs
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]


def grey_split(levels: list[int], shape: tuple[int, int, int] = (8, 8, 1)) -> Split:
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, *shape).contiguous()
    return Split.of(images, torch.zeros(len(levels), dtype=torch.int64))


def grey_data(levels: list[int], shape: tuple[int, int, int] = (8, 8, 1), name: str = "flat") -> Data:
    return Data(name, ("a", "b"), grey_split(levels, shape), grey_split(levels, shape))


class Brightness(nn.Module):
    """A network whose confidence grows with the brightness of the image."""

    def forward(self, images: Tensor) -> Tensor:
        light = images.mean((1, 2, 3))
        return torch.stack([scale * light for scale in (100.0, 0.0)], 1)


def test_auroc_counts_every_pair_and_ties_as_half() -> None:
    own_scores, other_scores = [10, 200, 200, 90], [200, 5, 90]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in own_scores for b in other_scores]
    assert ood_auroc(Brightness(), grey_data(own_scores), grey_data(other_scores)) == pytest.approx(
        sum(wins) / len(wins)
    )


def test_auroc_is_1_if_in_distribution_images_are_more_confident() -> None:
    assert ood_auroc(Brightness(), grey_data([200, 201]), grey_data([3, 4])) == 1
    assert ood_auroc(Brightness(), grey_data([3, 4]), grey_data([200, 201])) == 0
    assert ood_auroc(Brightness(), grey_data([3, 4]), grey_data([3, 4])) == 0.5


def test_confidences_that_round_to_1_are_distinguished() -> None:
    """Both confidences are 1 in float32, so probabilities alone would give an AUROC of 0.5."""
    logits = Brightness()(torch.tensor([200 / 255, 250 / 255]).view(2, 1, 1, 1))
    assert logits.softmax(1).amax(1).tolist() == [1.0, 1.0]
    assert ood_auroc(Brightness(), grey_data([250]), grey_data([200])) == 1


@pytest.mark.parametrize("shape", [(8, 8, 3), (20, 12, 1), (5, 31, 3), (8, 8, 4)])
def test_other_image_shapes_are_converted(shape: tuple[int, int, int]) -> None:
    for own in ((8, 8, 1), (8, 8, 3)):
        assert ood_auroc(Brightness(), grey_data([10, 100], own), grey_data([50, 60, 70], shape)) == 0.5


def test_data_by_name_split_and_with_a_network(
    tiny_data: Data, trained_model: Callable[..., Tapped], tiny_npz: str, refused: Refused
) -> None:
    model = trained_model()
    assert ood_auroc(model, tiny_data, tiny_npz) == 0.5
    against_digits = ood_auroc(model, tiny_data, "digits")
    assert against_digits == ood_auroc(model, tiny_data, open_data("digits"))
    assert 0 < against_digits < 1
    assert ood_auroc(model, tiny_data, "digits", split="train") != against_digits
    with refused("unknown data set 'digts'; did you mean 'digits'"):
        ood_auroc(model, tiny_data, "digts")
    with refused("unknown split 'tset'; did you mean 'test'"):
        ood_auroc(model, tiny_data, "digits", split="tset")


def test_labels_of_the_other_data_are_ignored(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    digits = open_data("digits")
    unlabelled = replace(digits, test=replace(digits.test, labels=torch.full((360,), -1)))
    model = trained_model()
    assert ood_auroc(model, tiny_data, unlabelled) == ood_auroc(model, tiny_data, digits)


def test_auroc_of_a_one_class_network_is_one_half() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    assert ood_auroc(model, grey_data([1, 2]), grey_data([3])) == 0.5


def test_images_of_the_right_shape_are_unchanged() -> None:
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(ImagesAs((3, 5, 7))(images), images)


def test_channels_are_repeated_or_averaged() -> None:
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(ImagesAs((3, 4, 4))(grey), grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(ImagesAs((1, 4, 4))(colour), colour.mean(1, keepdim=True))


@pytest.mark.parametrize("size", [(8, 8), (11, 20), (40, 37)])
def test_resizing_equals_bilinear_resizing_of_pillow(size: tuple[int, int]) -> None:
    """Downsampling averages the covered pixels; Pillow computes in float mode, which does not round."""
    image = np.random.default_rng(0).random((24, 30), dtype=np.float32)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    resized_image = ImagesAs((1, *size))(torch.from_numpy(image)[None, None])[0, 0]
    torch.testing.assert_close(resized_image, torch.from_numpy(expected.copy()), atol=1e-5, rtol=0)
