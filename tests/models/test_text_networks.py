"""Networks for texts: padding has no influence, and feature methods find their stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.modality import Tokens
from tutelage.models import zoo
from tutelage.models.networks.texttransformer import positions
from tutelage.models.tapped import Tapped
from tutelage.models.tokens import masked_max, masked_mean, zero_padding

VOCABULARY, PADDING = 30, 3
NAMES = ("textcnn-2-16", "texttransformer-2-64")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = zoo.build(name, num_classes=5, input_shape=(9,), modality=Tokens(VOCABULARY, PADDING))
    with torch.no_grad():  # norms and embeddings as after training
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.double().eval()


def texts(count: int = 6, length: int = 9) -> Tensor:
    """Texts of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(PADDING + 1, VOCABULARY, (count, length), generator=generator)
    for row in range(count):
        tokens[row, row + 1 :] = PADDING
    return tokens


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_change_logits(name: str) -> None:
    network, tokens = build(name), texts()
    longer = torch.cat([tokens, torch.full((6, 7), PADDING)], 1)
    logits = network(tokens)
    torch.testing.assert_close(network(longer), logits, rtol=1e-10, atol=1e-10)
    for row in range(6):
        torch.testing.assert_close(
            network(tokens[row : row + 1, : row + 1]), logits[row : row + 1], rtol=1e-9, atol=1e-9
        )
    assert (network(tokens.flip(0)) - logits).abs().max() > 0.01  # the tokens do


@pytest.mark.parametrize("name", NAMES)
def test_text_without_tokens_gives_finite_logits_and_gradients(name: str) -> None:
    network = build(name).train()
    logits = network(torch.full((2, 4), PADDING))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tokens_matters(name: str) -> None:
    network, tokens = build(name), texts(1, 9)
    tokens[0, 1:4] = torch.tensor([9, 8, 7])
    other = tokens.clone()
    other[0, 1:4] = torch.tensor([7, 8, 9])
    assert (network(tokens) - network(other)).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_sequences_with_zeros_at_padding(name: str) -> None:
    model, tokens = Tapped(build(name)).trace(texts()), texts()
    assert model.maps == ("stem", "stage1", "stage2")
    outputs = model.tap(tokens, ("logits", "stage1", "stage2", "embedding"))
    width = int(name.rpartition("-")[2])
    assert outputs["stage2"].shape == (6, 9, width)
    assert outputs["embedding"].shape == (6, width)
    assert (outputs["stage2"][tokens == PADDING] == 0).all()
    assert (outputs["stage2"][tokens != PADDING] != 0).any()


def test_four_blocks_of_a_deep_network_are_stages() -> None:
    network = zoo.build("textcnn-8-4", num_classes=2, input_shape=(9,), modality=Tokens(VOCABULARY, PADDING))
    taps = Tapped(network).trace(texts()).taps
    assert [str(taps[f"stage{number}"]) for number in (1, 2, 3, 4)] == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    assert str(taps["stem"]) == "table"


def test_positions_are_sines_and_cosines() -> None:
    values = positions(3, 4, torch.zeros(1, dtype=torch.float64))
    angle = torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]])
    torch.testing.assert_close(values, torch.cat([angle.sin(), angle.cos()], 1).double(), rtol=1e-6, atol=1e-7)


def test_masked_reductions() -> None:
    features = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(features, mask).tolist() == [[2.0, -3.0], [0.0, 0.0]]
    assert masked_max(features, mask).tolist() == [[3.0, -2.0], [0.0, 0.0]]
    assert zero_padding(features, mask)[0].tolist() == [[1.0, -4.0], [3.0, -2.0], [0.0, 0.0]]


def test_names_for_other_inputs_are_refused(refused: Any) -> None:
    with refused("textcnn-2-16 is no network for images"):
        zoo.build("textcnn-2-16", num_classes=5, input_shape=(3, 8, 8))
    with refused("even width", "take 64"):
        zoo.build("texttransformer-2-63", num_classes=5, input_shape=(9,), modality=Tokens(VOCABULARY, PADDING))
