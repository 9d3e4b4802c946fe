"""Networks of cells: candidates, padding, draws, and the network of a chosen cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data.modality import Tokens
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods.nas_kd.candidates import CANDIDATES, relative_costs
from tutelage.methods.nas_kd.networks.cells import EDGES, Cells, cell_of, digits_of
from tutelage.methods.nas_kd.surgery.choose_cell import apply as choose_cell
from tutelage.models import zoo
from tutelage.models.surgery import applied_operations, reapply

VOCABULARY, PADDING = 20, 2
CELL = "41-573-9862"


def build(name: str) -> Cells:
    torch.manual_seed(0)
    network = zoo.build(name, num_classes=3, input_shape=(8,), modality=Tokens(VOCABULARY, PADDING))
    assert isinstance(network, Cells)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.double().eval()


def texts(length: int = 8) -> Tensor:
    """Texts of 1 to 8 tokens."""
    tokens = torch.randint(PADDING + 1, VOCABULARY, (length, length), generator=torch.Generator().manual_seed(1))
    for row in range(length):
        tokens[row, row + 1 :] = PADDING
    return tokens


def set_choice(network: Cells, cell: str) -> None:
    with torch.no_grad():
        network.alpha.zero_()
        for edge, number in enumerate(digits_of(cell)):
            network.alpha[edge, number] = 50.0


@pytest.mark.parametrize("number", range(10))
def test_padding_changes_no_candidate(number: int) -> None:
    digit = str(number)
    network = build(f"cells-2-6-{digit * 2}-{digit * 3}-{digit * 4}")
    tokens = texts()
    logits = network(tokens)
    longer = torch.cat([tokens, torch.full((8, 9), PADDING)], 1)
    torch.testing.assert_close(network(longer), logits, rtol=1e-9, atol=1e-9)
    for row in range(8):
        alone = network(tokens[row : row + 1, : row + 1])
        torch.testing.assert_close(alone, logits[row : row + 1], rtol=1e-9, atol=1e-9)
    assert network(torch.full((2, 5), PADDING)).isfinite().all()


def test_padding_does_not_change_a_search_network() -> None:
    network = build("cells-2-6").train()
    longer = torch.cat([texts(), torch.full((8, 5), PADDING)], 1)
    torch.manual_seed(3)
    logits = network(texts())
    torch.manual_seed(3)
    torch.testing.assert_close(network(longer), logits, rtol=1e-9, atol=1e-9)


def test_candidates_compute_what_their_names_say() -> None:
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False]])[:, :, None]
    x = x * mask
    outputs = {}
    for candidate in CANDIDATES:
        torch.manual_seed(0)
        module = candidate.build(3, affine=False).double()
        outputs[candidate.name] = module(x, mask) * mask
        if not candidate.learned:
            continue
        weight = module.get_submodule("conv").weight
        expected = torch.zeros(6, 3, dtype=torch.float64)
        for place in range(5):
            for tap in range(candidate.kernel):
                source = place + candidate.dilation * (tap - candidate.kernel // 2)
                if 0 <= source < 6:
                    expected[place] += weight[:, :, tap] @ x[0, source].clamp(min=0)  # type: ignore[index, operator]
        centred = expected - expected.mean(1, keepdim=True)
        expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(outputs[candidate.name][0], expected * mask[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(outputs["skip"], x)
    assert not outputs["none"].any()
    for place in range(5):
        inside = x[0, max(0, place - 1) : min(5, place + 2)]
        torch.testing.assert_close(outputs["avgpool3"][0, place], inside.sum(0) / 3)
        torch.testing.assert_close(outputs["maxpool3"][0, place], inside.amax(0))


def test_draws_are_one_hot_and_have_gradients() -> None:
    network = build("cells-2-6").train()
    drawn: list[Tensor] = []
    network.operations.register_forward_hook(lambda _module, _inputs, output: drawn.append(output))
    network.cell_counts.register_forward_hook(lambda _module, _inputs, output: drawn.append(output))
    network(texts()).square().sum().backward()
    operations, counts = drawn
    torch.testing.assert_close(operations.sum(1), torch.ones(9, dtype=torch.float64))
    assert ((operations.detach() - operations.detach().round()).abs() < 1e-12).all()
    torch.testing.assert_close(counts.sum(), torch.ones((), dtype=torch.float64))
    assert network.alpha.grad is not None
    assert (network.alpha.grad.abs().sum(1) > 0).all()
    network(texts())
    assert not torch.equal(drawn[2], operations)


@pytest.mark.parametrize("depth", [1, 2])
def test_chosen_network_has_the_logits_of_the_search_network(depth: int) -> None:
    network = build(f"cells-{depth}-6e4")
    set_choice(network, CELL)
    assert network.most_probable()[0] == CELL
    chosen = network.with_cell(CELL, depth)
    torch.testing.assert_close(chosen(texts()), network(texts()), rtol=1e-9, atol=1e-9)
    network.train().temperature.fill_(0.01)  # draws of a certain choice
    torch.testing.assert_close(chosen(texts()), network(texts()), rtol=1e-9, atol=1e-9)
    other = network.with_cell("11-111-1111", depth)
    assert (other(texts()) - chosen(texts())).abs().max() > 1e-3


def test_none_is_never_chosen() -> None:
    network = build("cells-1-6")
    set_choice(network, "00-000-0000")
    with torch.no_grad():
        network.alpha[:, 3] = 1.0
    assert network.most_probable() == ("33-333-3333", 1)


def test_chosen_network_is_built_by_name_and_by_its_record() -> None:
    network = build("cells-3-6")
    chosen = choose_cell(network, texts(), cell=CELL, depth=2)
    assert applied_operations(chosen) == [{"operation": "choose_cell", "cell": CELL, "depth": 2}]
    named, opened = build(f"cells-2-6-{CELL}"), reapply(build("cells-3-6"), applied_operations(chosen), texts())
    for other in (named, opened):
        assert {n: v.shape for n, v in other.state_dict().items()} == {
            n: v.shape for n, v in chosen.state_dict().items()
        }
        other.load_state_dict(chosen.state_dict())
        assert torch.equal(other(texts()), chosen(texts()))


def test_costs_are_those_of_the_network() -> None:
    channels, length = 6, 8
    skips, cell = build(f"cells-2-{channels}-11-111-1111"), build(f"cells-2-{channels}-{CELL}")
    chosen = [CANDIDATES[int(number or 0)] for number in digits_of(CELL)]
    convolutions = [candidate for candidate in chosen if candidate.learned]
    expected = 2 * sum(candidate.parameters(channels) + 2 * channels for candidate in convolutions)  # 2 C of each norm
    assert parameters(cell) - parameters(skips) == expected
    example = torch.full((1, length), PADDING + 1)
    difference = flops(cell, example) - flops(skips, example)
    assert difference == 2 * length * sum(candidate.flops(channels) for candidate in convolutions)
    costs = relative_costs(channels)
    assert costs.max() == costs[6] == costs[9] == 1
    assert costs[0] == costs[1] == 0
    torch.testing.assert_close(costs[4], torch.tensor(3 / 7))
    assert 0 < costs[2] == costs[3] < 0.04


def test_cells_have_an_operation_for_each_edge(refused: Any) -> None:
    assert cell_of([4, 1, 5, 7, 3, 9, 8, 6, 2]) == CELL
    assert digits_of(CELL) == [4, 1, 5, 7, 3, 9, 8, 6, 2]
    assert len(EDGES) == 9
    network = build("cells-2-6")
    with refused("a digit for each edge", "41-457-1842", "'415'"):
        network.with_cell("415", 2)
    with refused("3 cells cannot be chosen"):
        network.with_cell(CELL, 3)
    with refused("chosen already"):
        build(f"cells-2-6-{CELL}").most_probable()
    with refused("in a network such as cells-2-32, and this is a Linear"):
        choose_cell(torch.nn.Linear(2, 2), texts(), cell=CELL, depth=1)
