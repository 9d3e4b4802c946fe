"""Networks joined by a linear classifier on their embeddings at length 1."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.join import apply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights

Net = Callable[..., Tapped]


def pixels() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_logits_are_linear_in_both_embeddings(tiny_model: Net) -> None:
    first, second = (tiny_model(seed).eval() for seed in (1, 2))
    each = [model.tap(pixels(), ("embedding",))["embedding"] for model in (first, second)]
    joined = apply(first.module, first.normalised(pixels()), others=[second.module])
    side_by_side = torch.cat([vectors / vectors.norm(dim=1, keepdim=True) for vectors in each], 1)
    expected = side_by_side @ joined.classifier.weight.T + joined.classifier.bias
    torch.testing.assert_close(joined(first.normalised(pixels())), expected)
    assert joined.classifier.weight.shape == (4, side_by_side.shape[1])


def test_the_classifiers_input_is_the_embedding_that_is_tapped(tiny_model: Net) -> None:
    model = tiny_model(1).eval()
    joined = Tapped(apply(model.module, pixels(), others=[tiny_model(2).module]), *[[0.4], [0.3]])
    outputs = joined.eval().tap(pixels(), ("logits", "embedding"))
    torch.testing.assert_close(
        outputs["embedding"], torch.cat(joined.module.embeddings(joined.normalised(pixels())), 1)
    )
    torch.testing.assert_close(outputs["embedding"].square().sum(1), torch.full((6,), 2.0))


def test_it_is_written_and_built_again(tiny_model: Net, tmp_path: Path) -> None:
    joined = apply(tiny_model(1).module, pixels(), members=3).eval()
    with torch.no_grad():
        for parameter in joined.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert applied_operations(joined) == [{"operation": "join", "members": 3}]
    save_weights(tmp_path / "w.safetensors", joined, {})
    again = reapply(tiny_model(5).module, applied_operations(joined), pixels())
    load_weights(tmp_path / "w.safetensors", again)
    assert torch.equal(again.eval()(pixels()), joined(pixels()))
    assert torch.equal(copy.deepcopy(joined)(pixels()), joined(pixels()))


def test_an_embedding_of_zeros_gives_no_nan(tiny_model: Net) -> None:
    network = tiny_model(1).module
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    logits = apply(network, pixels()).eval()(pixels())
    logits.sum().backward()
    assert logits.isfinite().all()


def test_what_cannot_be_joined_is_refused(tiny_model: Net, refused: Any) -> None:
    for members in (1, 65):
        with refused("2 to 64 networks can be joined", members):
            apply(tiny_model().module, pixels(), members=members)
    with refused("2 to 64", "got 3"):
        apply(tiny_model().module, pixels(), others=[tiny_model().module] * 2)
    with refused("classifier of Sequential", "nn.Linear"):
        apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid()), pixels())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_classifier_computes_in_float32_at_least(dtype: torch.dtype, tiny_model: Net) -> None:
    images = pixels().to(dtype)
    joined = apply(tiny_model().module.to(dtype), images).eval()
    assert joined(images).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
