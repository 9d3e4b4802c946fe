"""Detectors of centre points, and how their maps become boxes."""

from __future__ import annotations

import pytest
import torch

from tests.terms.test_centre_points import BOXES, CLASSES, SIZE, perfect_outputs
from tutelage.data.targets.boxes import OBJECT
from tutelage.models.centre_points import decode
from tutelage.models.networks.centre import RARE, CentreNet
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build


def test_decoding_the_true_map_gives_the_boxes() -> None:
    detections = decode(perfect_outputs(), SIZE)
    for image, rows in enumerate(BOXES.float()):
        objects = rows[(rows[:, 4] >= 0) & (rows[:, 5] == OBJECT)]
        certain = detections[image][detections[image, :, 4] > 0.5]
        assert len(certain) == len(objects)
        for row in objects:
            nearest = (certain[:, :4] - row[:4]).abs().sum(1).argmin()
            torch.testing.assert_close(certain[nearest, :4], row[:4])
            assert certain[nearest, 5] == row[4]


def test_only_the_largest_of_neighbouring_cells_is_a_detection() -> None:
    outputs = torch.full((1, 2 + 4, 8, 8), -1e4)
    outputs[0, 0, 3, 3], outputs[0, 0, 3, 4], outputs[0, 0, 6, 3], outputs[0, 1, 3, 4] = 2.0, 1.0, 0.0, 0.5
    outputs[0, 2:] = 1.0
    detections = decode(outputs, (16, 32))
    certain = detections[0][detections[0, :, 5] >= 0]
    assert certain[:, 5].tolist() == [0, 1, 0]
    torch.testing.assert_close(certain[:, 4], torch.tensor([2.0, 0.5, 0.0]).sigmoid())
    # Cell (3, 3) with an offset of 1 and a size of 1, in cells of 4 x 2 pixels.
    assert certain[0, :4].tolist() == [4 * 3.5, 2 * 3.5, 4 * 4.5, 2 * 4.5]
    assert detections.shape == (1, 100, 6)
    assert bool((detections[0, 3:, 5] == -1).all())


def test_boxes_are_cut_at_the_rim_and_negative_sizes_are_none() -> None:
    outputs = torch.full((1, 1 + 4, 4, 4), -1e4)
    outputs[0, 0, 0, 0] = 3.0
    outputs[0, 1:, 0, 0] = torch.tensor([20.0, -5.0, 0.5, 0.5])
    assert decode(outputs, (8, 8), top=5)[0, 0, :4].tolist() == [0, 1, 8, 1]


@pytest.mark.parametrize(("size", "cells"), [((64, 64), (16, 16)), ((50, 70), (13, 18))])
def test_map_has_a_quarter_of_the_resolution_and_stages_halve_it(size: tuple[int, int], cells: tuple[int, int]) -> None:
    network = build("centre10x0.125", num_classes=CLASSES, input_shape=(3, *size))
    model = Tapped(network)
    roles = ("logits", "stem", "stage1", "stage2", "stage3", "stage4", "embedding")
    outputs = model.tap(torch.rand(2, 3, *size), roles)
    assert outputs["logits"].shape == (2, CLASSES + 4, *cells)
    assert outputs["stem"].shape == (2, 8, *cells)
    assert [outputs[f"stage{number}"].shape[1] for number in range(1, 5)] == [8, 16, 32, 64]
    assert [outputs[f"stage{n}"].shape[2] for n in range(1, 5)] == [-(-cells[0] // 2**n) for n in range(4)]
    assert outputs["embedding"].shape == (2, 8)


def test_first_probability_of_a_centre_is_about_a_tenth() -> None:
    network = CentreNet(10, CLASSES, width=0.125).eval()
    heat = network(torch.rand(2, 3, 64, 64))[:, :CLASSES]
    assert float((heat - RARE).detach().abs().max()) < 1


@pytest.mark.parametrize(("name", "words"), [("centre12", ("8n+2", "10 and 18")), ("centre10x0.02", ("1/32",))])
def test_impossible_sizes_are_refused(name: str, words: tuple[str, ...], refused) -> None:
    with refused(name.partition("x")[0][:6], *words):
        build(name, num_classes=2, input_shape=(3, 64, 64))
