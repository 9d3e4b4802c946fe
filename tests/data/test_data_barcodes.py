"""Barcode images: rendering, decoding and reproducible distortions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data import Batches, Data, open_data
from tutelage.data.formats.barcodes import Barcodes, Distortions, render
from tutelage.data.formats.ean13 import EAN13, modules, with_check_digit


@pytest.fixture(scope="module")
def barcodes() -> Data:
    return open_data("barcodes")


@pytest.fixture
def images() -> Tensor:
    return render(modules(with_check_digit(torch.randint(10, (12, 12), generator=torch.Generator().manual_seed(1)))))


def test_splits_are_disjoint_sets_of_valid_strings(barcodes: Data) -> None:
    assert barcodes.targets == Barcodes()
    assert barcodes.targets.task == "barcode"
    assert barcodes.input_shape == (1, 24, 192)
    sizes = {part: len(split) for part, split in barcodes.splits.items()}
    assert sizes == {"train": 20_000, "validation": 2_000, "test": 4_000}
    labels = torch.cat([split.labels for split in barcodes.splits.values()])
    assert EAN13.valid(labels).all()
    assert len(labels.unique(dim=0)) == len(labels)
    assert barcodes.summary()["counts"]["test"] == torch.bincount(barcodes.test.labels.flatten()).tolist()


def test_pixel_is_the_mean_of_the_modules_it_covers() -> None:
    bars = torch.zeros(1, 95, dtype=torch.uint8)
    bars[0, ::2] = 1
    exact = render(bars, 2, 113)
    assert exact.shape == (1, 2, 113, 1)
    expected = torch.full((113,), 255)
    expected[11 : 11 + 95 : 2] = 0
    assert torch.equal(exact[0, 0, :, 0], expected.to(torch.uint8))
    threefold = render(bars, 1, 339)[0, 0, :, 0]
    assert torch.equal(threefold, expected.repeat_interleave(3).to(torch.uint8))
    coarse = render(bars)[0, 0, :, 0].double()
    assert float(coarse.mean()) == pytest.approx(255 * (1 - 48 / 113), abs=0.5)


def test_zxing_reads_clean_images() -> None:
    zxingcpp = pytest.importorskip("zxingcpp")
    strings = with_check_digit(torch.randint(10, (20, 12), generator=torch.Generator().manual_seed(2)))
    for string, image in zip(strings.tolist(), render(modules(strings), 40, 3 * 113), strict=True):
        (barcode,) = zxingcpp.read_barcodes(image[:, :, 0].numpy(), formats=zxingcpp.BarcodeFormat.EAN13)
        assert barcode.text == "".join(map(str, string))


def test_view_depends_on_its_number_and_not_on_the_batch(images: Tensor) -> None:
    views = Distortions()
    numbers = torch.randint(1, views.count, (12,), generator=torch.Generator().manual_seed(3))
    batch = views(images, numbers)
    assert batch.dtype == torch.uint8
    assert batch.shape == images.shape
    for index in (0, 5, 11):
        assert torch.equal(views(images[index : index + 1], numbers[index : index + 1])[0], batch[index])
    assert torch.equal(views(images.flip(0), numbers.flip(0)).flip(0), batch)


def test_distortions_differ_between_views_and_between_images(images: Tensor) -> None:
    views = Distortions()
    distorted = views(images[:1].expand(6, -1, -1, -1), torch.arange(1, 7))
    assert len(distorted.flatten(1).unique(dim=0)) == 6
    same_number = views(images, torch.ones(12, dtype=torch.int64)).float()
    noise_and_light = (same_number - images.float()).flatten(1).std(1)
    assert len(noise_and_light.unique()) == 12


def test_identity_view_is_the_image(images: Tensor) -> None:
    for views in (Distortions(), Distortions(2.0), Distortions().limited(4)):
        assert torch.equal(views(images, torch.full((12,), views.identity)), images)
    assert Distortions().limited(4).count == 4


def test_distance_from_clean_images_grows_with_severity(images: Tensor) -> None:
    numbers = torch.arange(1, 13)
    distances = [
        float((Distortions(severity)(images, numbers).float() - images.float()).abs().mean())
        for severity in (0.0, 0.3, 1.0, 2.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 1  # resampling without a shift, on a nearly flat cylinder
    assert distances[2] > 20


def test_noise_has_its_variance_and_is_independent_between_pixels() -> None:
    grey = torch.full((200, 24, 192, 1), 128, dtype=torch.uint8)
    views = Distortions(0.5)(grey, torch.arange(1, 201))[:, :, :, 0].double() / 255
    for distance in (1, 2, 5):
        for gaps in (views[:, :, distance:] - views[:, :, :-distance], views[:, distance:] - views[:, :-distance]):
            squares = gaps.square()
            inside = (
                squares.where(squares < 0.04, torch.nan).flatten(1).nanmean(1)
            )  # excludes pairs across the border of the patch
            assert float(inside.median()) == pytest.approx(2 * 0.03**2, rel=0.1)


def test_severity_in_the_name_is_applied(barcodes: Data, monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setattr("tutelage.data.formats.barcodes.SIZES", {"train": 30, "validation": 10, "test": 10})
    mild, default = open_data("barcodes:0.5"), open_data("barcodes")
    assert mild.name == "barcodes:0.5"
    assert mild.views == Distortions(0.5)
    assert torch.equal(mild.test.labels, default.test.labels)
    assert torch.equal(mild.train.inputs, default.train.inputs)  # type: ignore[arg-type]
    assert not torch.equal(mild.test.inputs, default.test.inputs)  # type: ignore[arg-type]
    assert mild.fingerprint != default.fingerprint
    assert open_data("barcodes").fingerprint == default.fingerprint
    with refused("severity", "hard", "barcodes:1.4"):
        open_data("barcodes:hard")
    for severity in ("-1", "3.1", "nan"):
        with refused("between 0 and 3", severity):
            open_data(f"barcodes:{severity}")
    with refused("image size", "barcodes"):
        open_data("barcodes", image_size=32)


def test_invalid_view_limit_and_shifted_views_are_refused(refused: Any) -> None:
    with refused("the limit of views must be 1 or more", 0):
        Distortions(limit=0)
    with refused("bend"):
        Distortions().region((24, 192), torch.arange(3), torch.arange(3))


def test_batches_are_distorted_reproducibly(barcodes: Data) -> None:
    part = barcodes.train.subset(torch.arange(64))
    batches = [next(Batches(part, batch_size=32, views=barcodes.views, seed=4).epoch(2)) for _ in range(2)]
    assert torch.equal(batches[0].inputs, batches[1].inputs)
    assert torch.equal(batches[0].targets, barcodes.train.labels[batches[0].index])
    assert not torch.equal(batches[0].inputs * 255, part.inputs[batches[0].index].permute(0, 3, 1, 2))  # type: ignore[index]


def test_test_images_are_not_training_views(barcodes: Data) -> None:
    """The splits have different strings, and view numbers of the test split lie outside those of training."""
    assert not (barcodes.test.labels[:, None] == barcodes.train.labels[None, :2000]).all(2).any()
