"""Networks joined by a linear classifier on their normalised embeddings."""

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
    embeddings = [model.tap(pixels(), ("embedding",))["embedding"] for model in (first, second)]
    joined_network = apply(first.module, first.normalised(pixels()), others=[second.module])
    embedding_pair = torch.cat([vectors / vectors.norm(dim=1, keepdim=True) for vectors in embeddings], 1)
    expected = embedding_pair @ joined_network.classifier.weight.T + joined_network.classifier.bias
    torch.testing.assert_close(joined_network(first.normalised(pixels())), expected)
    assert joined_network.classifier.weight.shape == (4, embedding_pair.shape[1])


def test_embedding_is_the_input_of_the_joint_classifier(tiny_model: Net) -> None:
    model = tiny_model(1).eval()
    joined_network = Tapped(apply(model.module, pixels(), others=[tiny_model(2).module]), *[[0.4], [0.3]])
    outputs = joined_network.eval().tap(pixels(), ("logits", "embedding"))
    torch.testing.assert_close(
        outputs["embedding"], torch.cat(joined_network.module.embeddings(joined_network.normalised(pixels())), 1)
    )
    torch.testing.assert_close(outputs["embedding"].square().sum(1), torch.full((6,), 2.0))


def test_it_is_rebuilt_from_a_file(tiny_model: Net, tmp_path: Path) -> None:
    joined_network = apply(tiny_model(1).module, pixels(), members=3).eval()
    with torch.no_grad():
        for parameter in joined_network.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert applied_operations(joined_network) == [{"operation": "join", "members": 3}]
    save_weights(tmp_path / "w.safetensors", joined_network, {})
    rebuilt = reapply(tiny_model(5).module, applied_operations(joined_network), pixels())
    load_weights(tmp_path / "w.safetensors", rebuilt)
    assert torch.equal(rebuilt.eval()(pixels()), joined_network(pixels()))
    assert torch.equal(copy.deepcopy(joined_network)(pixels()), joined_network(pixels()))


def test_zero_embeddings_give_finite_logits(tiny_model: Net) -> None:
    network = tiny_model(1).module
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    logits = apply(network, pixels()).eval()(pixels())
    logits.sum().backward()
    assert logits.isfinite().all()


def test_invalid_members_raise(tiny_model: Net, refused: Any) -> None:
    for members in (1, 65):
        with refused("2 to 64 networks can be joined", members):
            apply(tiny_model().module, pixels(), members=members)
    with refused("2 to 64", "got 3"):
        apply(tiny_model().module, pixels(), others=[tiny_model().module] * 2)
    with refused("classifier of Sequential", "nn.Linear"):
        apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid()), pixels())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_classifier_computes_in_at_least_float32(dtype: torch.dtype, tiny_model: Net) -> None:
    images = pixels().to(dtype)
    joined_network = apply(tiny_model().module.to(dtype), images).eval()
    assert joined_network(images).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
