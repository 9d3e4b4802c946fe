"""Near duplicates with different labels."""

from __future__ import annotations

import torch

from tutelage.data import Split
from tutelage.labels.duplicates import near_duplicates


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)


def test_copies_with_another_label_are_found_whatever_their_brightness() -> None:
    pixels = images(10)
    pixels[7] = (pixels[2].float() * 0.5 + 40).to(torch.uint8)
    pixels[8] = pixels[3]
    labels = torch.zeros(10, dtype=torch.int64)
    labels[7] = 1
    assert near_duplicates(Split.of(pixels, labels)) == [(2, 7)]  # 3 and 8 have one label


def test_each_image_is_listed_once_and_unlabelled_images_never() -> None:
    pixels = images(1).repeat(5, 1, 1, 1)
    split = Split.of(pixels, torch.tensor([0, 1, 2, -1, 0]))
    pairs = near_duplicates(split)
    rows = [row for pair in pairs for row in pair]
    assert len(rows) == len(set(rows)) == 4
    assert 3 not in rows


def test_images_without_contrast_are_not_compared() -> None:
    split = Split.of(torch.full((4, 16, 16, 1), 90, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    assert near_duplicates(split) == []


def test_chunks_do_not_change_the_pairs(monkeypatch: object) -> None:
    pixels = images(30)
    pixels[20:] = pixels[:10]
    labels = torch.cat([torch.zeros(20), torch.ones(10)]).long()
    whole = sorted(near_duplicates(Split.of(pixels, labels)))
    monkeypatch.setattr("tutelage.labels.duplicates._CHUNK", 7)  # type: ignore[attr-defined]
    assert sorted(near_duplicates(Split.of(pixels, labels))) == whole == [(row, row + 20) for row in range(10)]
