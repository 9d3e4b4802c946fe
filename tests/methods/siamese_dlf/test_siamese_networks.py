"""Siamese networks: geometry, correlation and what follows from the absence of padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.frames import Frames, pair
from tutelage.methods.siamese_dlf.siamese import Siamese, correlation
from tutelage.models import zoo
from tutelage.models.tapped import Tapped


def network(name: str, search: int = 127, channels: int = 3) -> Siamese:
    modality = Frames(search)
    torch.manual_seed(0)
    module = zoo.build(name, num_classes=1, input_shape=modality.input_shape((9, 9, channels)), modality=modality)
    assert isinstance(module, Siamese)
    return module


@pytest.mark.parametrize(("name", "search", "template", "whole"), [("siamfc6", 255, 6, 22), ("siamese4", 127, 9, 25)])
def test_responses_have_17_places(name: str, search: int, template: int, whole: int) -> None:
    tapped = Tapped(network(name, search))
    inputs = torch.rand(2, 3, search, search + (search - 1) // 2)
    outputs = tapped.eval().tap(inputs, ("logits", "template", tapped.trace(inputs).stages[-1]))
    assert outputs["logits"].shape == (2, 1, 17, 17)
    assert outputs["template"].shape[2:] == (template, template)
    assert outputs[tapped.stages[-1]].shape[2:] == (whole, whole)


def test_siamfc96_has_the_channels_of_alexnet() -> None:
    with torch.device("meta"):
        module = network("siamfc96", 255)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [96, 256, 384, 384, 256]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]
    assert not any(layer.padding[0] for layer in convolutions)  # type: ignore[index]


def test_initial_scale_is_the_published_one_for_alexnet() -> None:
    assert pytest.approx(0.001, rel=0.05) == 0.1 / (256 * 6 * 6) ** 0.5


@pytest.mark.parametrize("name", ["siamese0", "siamfc8", "siamfc0"])
def test_impossible_widths_are_refused(name: str, refused: Any) -> None:
    with refused(name, "must be"):
        network(name)


def test_correlation_equals_its_sum_in_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    template = torch.randn(2, 3, 2, 3, generator=generator)
    search = torch.randn(2, 3, 5, 4, generator=generator)
    expected = torch.zeros(2, 1, 4, 2, dtype=torch.float64)
    for b in range(2):
        for row in range(4):
            for column in range(2):
                for c in range(3):
                    for i in range(2):
                        for j in range(3):
                            product = float(template[b, c, i, j]) * float(search[b, c, row + i, column + j])
                            expected[b, 0, row, column] += product
    response = correlation(template, search)
    assert response.dtype == torch.float32
    torch.testing.assert_close(response.double(), expected, atol=1e-5, rtol=0)


def test_correlation_has_the_gradients_of_a_grouped_convolution() -> None:
    template, search = torch.randn(3, 4, 5, 3).double(), torch.randn(3, 4, 13, 9).double()

    def grouped_convolution(template: Tensor, search: Tensor) -> Tensor:
        return F.conv2d(search.reshape(1, 12, 13, 9), template, groups=3).transpose(0, 1)

    gradients = []
    for correlate in (correlation, grouped_convolution):
        leaves = [tensor.clone().requires_grad_() for tensor in (template, search)]
        correlate(*leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_correlation_of_bfloat16_is_summed_in_float32() -> None:
    template = torch.ones(1, 1, 20, 20, dtype=torch.bfloat16)
    response = correlation(template, torch.ones(1, 1, 20, 20, dtype=torch.bfloat16))
    assert response.item() == 400  # in bfloat16, the sum of ones stops at 256


def test_features_correlated_with_their_centre_peak_at_the_centre() -> None:
    maps = torch.randn(4, 16, 25, 25, generator=torch.Generator().manual_seed(0))
    response = correlation(maps[:, :, 8:17, 8:17], maps)[:, 0]
    for sample in response:
        assert divmod(int(sample.argmax()), 17) == (8, 8)


def test_template_is_recognised_where_it_lies() -> None:
    module = network("siamese16", channels=1).eval()
    search = torch.rand(3, 1, 127, 127, generator=torch.Generator().manual_seed(1))
    for row, column in ((32, 32), (0, 64), (16, 8)):
        template = search[:, :, row : row + 63, column : column + 63]
        response = module(pair(template - 0.5, search - 0.5))[:, 0]
        for sample in response:
            assert divmod(int(sample.argmax()), 17) == (row // 4, column // 4)


def test_shifted_search_crop_shifts_the_response() -> None:
    module = network("siamese4", channels=1).eval()
    wide = torch.rand(1, 1, 127, 131, generator=torch.Generator().manual_seed(2))
    template = wide[:, :, 30:93, 30:93]
    left, right = (module(pair(template, wide[..., start : start + 127])) for start in (0, 4))
    torch.testing.assert_close(left[..., 1:], right[..., :-1], atol=1e-5, rtol=1e-4)


def test_stages_are_those_of_the_search_crop() -> None:
    tapped = Tapped(network("siamese4"))
    inputs = torch.rand(2, 3, 127, 190)
    tapped.trace(inputs)
    assert tapped.stages == ("stage1", "stage2", "stage3", "stage4")
    outputs = tapped.eval().tap(inputs, ("stage4", "template"))  # the pass stops before the response
    module = tapped.module
    assert isinstance(module, Siamese)
    torch.testing.assert_close(outputs["stage4"], module.backbone(inputs[..., :127]))
    torch.testing.assert_close(outputs["template"], module.backbone(inputs[:, :, :63, 127:]))


def test_search_crops_share_a_template() -> None:
    module = network("siamese4").eval()
    generator = torch.Generator().manual_seed(3)
    templates, crops = (torch.rand(2, *shape, generator=generator) for shape in ((3, 63, 63), (5, 3, 127, 127)))
    shared = module(pair(templates, torch.cat(crops.unbind(1), 3)))
    assert shared.shape == (2, 5, 17, 17)
    for number in range(5):
        alone = module(pair(templates, crops[:, number]))
        torch.testing.assert_close(shared[:, number : number + 1], alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_is_trained() -> None:
    module = network("siamese4")
    response: Tensor = module(torch.rand(4, 3, 127, 190))
    response.square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
