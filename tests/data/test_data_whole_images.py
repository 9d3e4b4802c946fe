"""Whole images: reduced decoding, boxes, orientation, and batches of random views."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import write_image
from tutelage.config import Config
from tutelage.data import Batches, CropsAndFlips, Data, RandomViews, evaluation_batches, open_data
from tutelage.data.configured import load_data
from tutelage.data.views.boxes import centre_boxes, cut
from tutelage.data.views.random_views import standard, strong
from tutelage.data.whole_images import WholeImages
from tutelage.errors import TutelageWarning

SIDE = 32


def smooth(width: int, height: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(100, 75), (75, 100), (40, 60), (300, 200), (64, 64), (333, 501)]
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for number, size in enumerate(sizes):
                suffix = "png" if number == 2 else "jpg"
                write_image(folder / split / label / f"{number}.{suffix}", smooth(*size, seed=len(split) + number))
    return folder


def configured(folder: Path, **fields: Any) -> Data:
    return load_data(Config(data=f"folder:{folder}", image_size=SIDE, validation=0.0, **fields))


def test_images_are_decoded_at_the_smallest_sufficient_size(photos):
    images = configured(photos, augment="standard").train.inputs
    assert isinstance(images, WholeImages)
    assert images.shape == (12, SIDE, SIDE, 3)
    least = 37  # 32 / 0.875, rounded up
    assert images.factors[:6].tolist() == [2, 2, 1, 4, 1, 8]
    for full, size, factor in zip(images.full_sizes, images.sizes, images.factors.tolist(), strict=True):
        assert size.tolist() == [-(-side // factor) for side in full.tolist()]
        assert min(size.tolist()) >= least
        assert factor == 8 or min(full.tolist()) // (2 * factor) < least


@pytest.mark.parametrize(("suffix", "channels"), [("jpg", 1), ("jpg", 3), ("png", 1), ("png", 3), ("webp", 3)])
@pytest.mark.parametrize("size", [(301, 203), (64, 65), (1000, 1001), (47, 50)])
def test_reduced_decoding_is_a_mean_of_pixels(tmp_path, suffix, size, channels):
    pixels = smooth(*size, seed=3)
    image = Image.fromarray(pixels) if channels == 3 else Image.fromarray(pixels[..., 0])
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        image.save(tmp_path / split / "a" / f"0.{suffix}", quality=98)
    images = configured(tmp_path, augment="standard").train.inputs
    factor = int(images.factors[0])
    with Image.open(tmp_path / "train" / "a" / f"0.{suffix}") as file:
        expected = np.asarray(file.convert("RGB" if channels == 3 else "L").reduce(factor)).astype(int)
    actual = images._whole(0).astype(int)
    assert actual.shape == (*images.sizes[0].tolist(), channels)
    assert abs(actual - expected.reshape(actual.shape)).max() <= 6
    assert abs(actual - expected.reshape(actual.shape)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_reduced_images(tmp_path, orientation):
    upright = smooth(200, 120, seed=1)
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[274] = orientation
    for split in ("train", "test"):
        write_image(tmp_path / split / "a" / "0.jpg", upright, quality=98)
        write_image(
            tmp_path / split / "a" / "1.jpg", np.ascontiguousarray(turns[orientation](upright)), exif=exif, quality=98
        )
    images = configured(tmp_path, augment="standard").train.inputs
    assert images.factors.tolist() == [2, 2]
    assert images.sizes.tolist() == [[60, 100], [60, 100]]
    plain, turned = (images._whole(number).astype(int) for number in (0, 1))
    assert abs(plain - turned).max() <= 8


def test_evaluation_reads_the_centre_like_pillow(photos):
    data = configured(photos, augment="standard")
    batch = next(iter(evaluation_batches(data.test, workers=0)))
    assert batch.inputs.shape == (12, 3, SIDE, SIDE)
    with Image.open(photos / "test" / "cat" / "4.jpg") as file:  # 64 x 64: the middle 56 pixels
        expected = np.asarray(file.crop((4, 4, 60, 60)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)
    actual = (batch.inputs[4] * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert abs(actual - expected).max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_show_the_boxes_that_the_views_name(photos, workers):
    data = configured(photos, augment="standard")
    images = data.train.inputs
    batches = Batches(data.train, batch_size=4, views=data.views, seed=3, workers=workers, second=True)
    order, first, second = batches.plan(0)
    seen = list(batches.epoch(0))
    assert len(seen) == 3
    for step, batch in enumerate(seen):
        for view, inputs in ((first[step], batch.inputs), (second[step], batch.second)):
            boxes = data.views.boxes(images.sizes[order[step]], view, order[step])
            whole = [torch.from_numpy(images._whole(index)) for index in order[step].tolist()]
            stored = [cut(image, box, (SIDE, SIDE)) for image, box in zip(whole, boxes.tolist(), strict=True)]
            assert torch.equal(inputs, torch.stack(stored).permute(0, 3, 1, 2).float() / 255)
        assert torch.equal(batch.key, torch.stack([order[step], first[step]], 1))
    for step in (4, 1):
        again = batches.at(step)
        reference = list(batches.epoch(1))[1] if step == 4 else seen[1]
        assert torch.equal(again.inputs, reference.inputs)
        assert torch.equal(again.second, reference.second)


def test_limited_views_are_the_same_images_in_every_epoch_and_view_0_is_the_evaluated_one(photos):
    data = configured(photos, augment="strong", views=2)
    images: dict[tuple[int, int], torch.Tensor] = {}
    batches = Batches(data.train, batch_size=4, views=data.views, workers=0)
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            for key, image in zip(batch.key.tolist(), batch.inputs, strict=True):
                assert torch.equal(images.setdefault(tuple(key), image), image)
    evaluated = next(iter(evaluation_batches(data.train, workers=0))).inputs
    assert {view for _, view in images} == {0, 1}
    for (index, view), image in images.items():
        assert torch.equal(image, evaluated[index]) == (view == 0)


def test_a_subset_reads_its_own_images(photos):
    data = load_data(Config(data=f"folder:{photos}", image_size=SIDE, validation=0.25, augment="standard"))
    whole = configured(photos, augment="standard").train.inputs
    for split in (data.train, data.validation):
        everything = torch.arange(len(split))
        assert torch.equal(split.inputs.sizes, whole.sizes[split.index])
        assert torch.equal(split.inputs[everything], whole[split.index])
        boxes = centre_boxes(split.inputs.sizes, 0.5)
        assert torch.equal(split.inputs.crops(everything, boxes), whole.crops(split.index, boxes))


def test_other_views_apply_to_the_centres(photos):
    data = configured(photos, augment="standard")
    views = CropsAndFlips(pad=2, flip=True)
    (batch,) = Batches(data.train, batch_size=12, views=views, workers=0).epoch(0)
    rows, numbers = batch.key.T
    expected = views(data.train.inputs[rows], numbers).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(batch.inputs, expected)


def test_names_of_augmentations(photos):
    assert configured(photos, augment="standard").views == standard(3)
    assert configured(photos, augment="strong").views == strong(3)
    pad_and_crop = CropsAndFlips(pad=SIDE // 8, flip=True)
    for augment in ("crop", True, "default", "true"):
        data = configured(photos, augment=augment)
        assert data.views == pad_and_crop
        assert data.train.in_memory
    for augment in ("none", False, "false"):
        assert configured(photos, augment=augment).views == CropsAndFlips()


def test_images_of_one_size_that_are_not_resized_stay_in_memory(tmp_path):
    for split in ("train", "test"):
        for number in range(4):
            write_image(tmp_path / split / "a" / f"{number}.png", smooth(SIDE, SIDE, seed=number))
    data = load_data(Config(data=f"folder:{tmp_path}", augment="standard", validation=0))
    assert data.train.in_memory
    (batch,) = Batches(data.train, batch_size=4, views=data.views).epoch(0)
    assert batch.inputs.shape == (4, 3, SIDE, SIDE)


def test_augmentations_of_photographs_are_refused_for_other_inputs(refused, tmp_path):
    with refused("standard", "images", "vectors"):
        from tutelage.data import Vectors

        Vectors().named_views("standard", (3,))
    with refused("augment", "none, crop, standard or strong", "wild"):
        Config(augment="wild")


def test_fingerprint_and_cached_outputs_depend_on_how_images_are_read(photos):
    fingerprints = {configured(photos, augment=augment).fingerprint for augment in ("crop", "standard", "strong")}
    assert len(fingerprints) == 3
    names = {configured(photos, augment=augment).train.inputs.fingerprint(0) for augment in ("standard", "strong")}
    assert len(names) == 1


def test_a_file_that_was_replaced_by_another_size_is_an_error(photos, tmp_path, refused):
    folder = shutil.copytree(photos, tmp_path / "copy")
    data = configured(folder, augment="standard")
    write_image(folder / "train" / "cat" / "0.jpg", smooth(90, 80, seed=0))
    with refused("0.jpg", "another size"):
        data.train.inputs[torch.tensor([0])]


def test_bad_files_are_named_or_left_out(photos, tmp_path, refused):
    folder = shutil.copytree(photos, tmp_path / "copy")
    file = folder / "train" / "cat" / "3.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    data = configured(folder, augment="standard")
    with refused("3.jpg", "--skip-bad"):
        list(Batches(data.train, batch_size=12, views=data.views, workers=0).epoch(0))
    with pytest.warns(TutelageWarning, match=r"1 of 24 images"):
        data = configured(folder, augment="standard", skip_bad=True)
    assert len(data.train) == 11
    assert len(list(Batches(data.train, batch_size=11, views=data.views, workers=0).epoch(0))) == 1


def test_views_with_other_parameters_in_python(photos):
    data = open_data(f"folder:{photos}", image_size=SIDE, whole=True)
    data = replace(data, views=RandomViews(crop=None))
    (batch,) = Batches(data.train, batch_size=12, views=data.views, workers=0).epoch(0)
    expected = data.train.inputs[batch.key[:, 0]].permute(0, 3, 1, 2).float() / 255
    assert torch.equal(batch.inputs, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_without_a_cache_equals_that_of_the_whole_decoded_image(photos, channels):
    """Of JPEG and PNG files, reduced by the decoder and not; at borders, mirrored, and of the output's size."""
    images = replace(configured(photos, augment="standard").train.inputs, channels=channels)
    for index, (height, width) in enumerate(images.sizes[:6].tolist()):
        whole = torch.from_numpy(images._decoded(index))
        assert whole.shape == (height, width, channels)
        boxes = [
            [0, 0, height, width, 0],
            [height - 5, width - 7, 5, 7, 1],
            [3, 2, SIDE, SIDE, 0],
            [3, 2, SIDE, SIDE, 1],
            [0, width - 1, height, 1, 0],
        ]
        crops = images.crops(torch.full((len(boxes),), index), torch.tensor(boxes))
        assert torch.equal(crops, torch.stack([cut(whole, box, (SIDE, SIDE)) for box in boxes]))
