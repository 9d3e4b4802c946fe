"""The operation widen: what it adds, what remains in every bit, and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.resize import select_units
from tutelage.models.surgery.widen import MAX_UNITS, apply, insert_units, insertion_order
from tutelage.models.weights import load_weights, save_weights

IMAGES = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """A convolution, its normalisation, and a linear layer that reads four positions of each channel."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, 4)
    )
    body(IMAGES)  # running statistics
    return body.eval()


@pytest.mark.parametrize(
    ("columns", "size", "expected"),
    [
        ([[0], [1], [2]], 3, [0, 1, 2, 3, 4]),  # channels
        ([[0, 1], [2, 3]], 4, [0, 1, 2, 3, 4, 5, 6, 7]),  # flattened maps: all positions of a channel
        ([[0, 2], [1, 3]], 4, [0, 1, 4, 6, 2, 3, 5, 7]),  # flattened with channels last
        ([[0, 1, 4, 5], [2, 3, 6, 7]], 8, [0, 1, 2, 3, 8, 9, 12, 13, 4, 5, 6, 7, 10, 11, 14, 15]),  # (H, C, W)
        ([[1], [2]], 5, [0, 1, 2, 5, 6, 3, 4]),  # the second of three concatenated branches
        ([[0, 3], [1, 4]], 5, [0, 1, 5, 7, 2, 3, 4, 6, 8]),  # twice in a concatenation
    ],
)
def test_places_of_two_new_units(columns: list[list[int]], size: int, expected: list[int]) -> None:
    assert insertion_order(torch.tensor(columns), size, 2).tolist() == expected


@pytest.mark.parametrize("shape", ["chw", "hwc", "hcw"])
def test_places_are_those_of_a_network_that_flattens(shape: str) -> None:
    def flattened(channels: int) -> Tensor:
        """The channel and position of each column, as one number."""
        values = 10 * torch.arange(channels)[:, None, None] + torch.arange(6).view(2, 3)
        return values.permute(*("chw".index(axis) for axis in shape)).flatten()

    before, after = flattened(3), flattened(5)
    columns = torch.stack([(before // 10 == channel).nonzero().squeeze(1) for channel in range(3)])
    numbered = {int(value): number for number, value in enumerate(before)}
    positions = [int(before[column]) % 10 for column in columns[-1]]
    for unit in range(2):
        for number, position in enumerate(positions):
            numbered[10 * (3 + unit) + position] = 18 + 6 * unit + number
    assert insertion_order(columns, 18, 2).tolist() == [numbered[int(value)] for value in after]


def test_new_units_that_nothing_reads_do_not_change_the_output(state_of: Any) -> None:
    body = network()
    before, expected = state_of(body), body(IMAGES)
    filters = torch.randn(2, 1, 3, 3)
    insert_units(body, "0", outputs=torch.arange(5), values={"weight": filters, "bias": torch.ones(2)})
    insert_units(body, "1", outputs=torch.arange(5))
    insert_units(body, "5", inputs=torch.arange(20))
    assert torch.equal(body[0].weight[3:], filters)
    assert body[1].weight[3:].tolist() == body[1].running_var[3:].tolist() == [1, 1]  # type: ignore[index, union-attr]
    assert body[1].bias[3:].tolist() == body[1].running_mean[3:].tolist() == [0, 0]  # type: ignore[index, union-attr]
    torch.testing.assert_close(body(IMAGES), expected, rtol=0, atol=1e-6)
    after = state_of(body)
    assert torch.equal(after["5.weight"][:, :12], before["5.weight"])
    assert not after["5.weight"][:, 12:].any()
    for name in before.keys() - {"5.weight"}:
        assert torch.equal(after[name][: len(before[name])] if before[name].ndim else after[name], before[name])


def test_removing_the_new_units_returns_the_network(state_of: Any, changed: Any) -> None:
    body = network()
    before = state_of(body)
    places = torch.tensor([0, 3, 1, 4, 2])
    for layer in ("0", "1"):
        insert_units(body, layer, outputs=places)
        select_units(body, layer, outputs=torch.tensor([0, 2, 4]))
    insert_units(body, "5", inputs=torch.arange(20).roll(8))
    select_units(body, "5", inputs=torch.arange(8, 20))
    assert changed(before, state_of(body)) == set()


def test_a_frozen_weight_stays_frozen_and_a_missing_bias_missing() -> None:
    body = nn.Sequential(nn.Linear(4, 3, bias=False).double().requires_grad_(False))
    insert_units(body, "0", outputs=torch.arange(5))
    assert body[0].bias is None
    assert body[0].weight.dtype == torch.float64
    assert not body[0].weight.requires_grad


def test_weights_file_of_a_widened_network_can_be_loaded(tmp_path: Path, refused: Any) -> None:
    body = network()
    for sizes in ((5, 20), (6, 24)):
        insert_units(body, "0", outputs=torch.arange(sizes[0]))
        insert_units(body, "1", outputs=torch.arange(sizes[0]))
        insert_units(body, "5", inputs=torch.arange(sizes[1]))
    operations = applied_operations(body)
    assert operations == [
        {"operation": "widen", "layer": "0", "inputs": 1, "outputs": 6},
        {"operation": "widen", "layer": "1", "inputs": 6, "outputs": 6},
        {"operation": "widen", "layer": "5", "inputs": 24, "outputs": 4},
    ]
    save_weights(tmp_path / "weights.safetensors", body, {})
    with refused("do not fit"):
        load_weights(tmp_path / "weights.safetensors", network())
    again = reapply(network(), operations, IMAGES)
    load_weights(tmp_path / "weights.safetensors", again)
    assert torch.equal(again.eval()(IMAGES), body(IMAGES))
    assert applied_operations(again) == operations
    assert str(again) == str(body)


def test_a_layer_that_grew_shrank_and_grew_again_can_be_rebuilt() -> None:
    body = network()
    for outputs in (6, 5, 2, 4):
        before = body[0].out_channels
        for layer in ("0", "1"):
            if outputs > before:
                insert_units(body, layer, outputs=torch.arange(outputs))
            else:
                select_units(body, layer, outputs=torch.arange(outputs))
    entries = [(entry["operation"], entry["layer"], entry["outputs"]) for entry in applied_operations(body)]
    assert entries == [
        ("widen", "0", 6),
        ("widen", "1", 6),
        ("resize", "0", 2),
        ("resize", "1", 2),
        ("widen", "0", 4),
        ("widen", "1", 4),
    ]
    again = reapply(network(), applied_operations(body), IMAGES)
    assert [tuple(value.shape) for value in again.state_dict().values()] == [
        tuple(value.shape) for value in body.state_dict().values()
    ]


def test_sizes_before_another_operation_remain_recorded() -> None:
    """Otherwise the network would not run when that operation is repeated."""
    body: nn.Module = network()
    for layer in ("0", "1"):
        insert_units(body, layer, outputs=torch.arange(4))
    insert_units(body, "5", inputs=torch.arange(16))
    body = reapply(body, [{"operation": "headless"}], IMAGES)
    for layer in ("0", "1"):
        insert_units(body, layer, outputs=torch.arange(5))
    names = [(entry["operation"], entry.get("layer")) for entry in applied_operations(body)]
    widened = [("widen", "0"), ("widen", "1")]
    assert names == [*widened, ("widen", "5"), ("headless", None), *widened]
    rebuilt = reapply(network(), applied_operations(body), IMAGES)
    rebuilt.load_state_dict(body.state_dict())
    assert torch.equal(rebuilt.eval()(IMAGES), body.eval()(IMAGES))


def test_invalid_sizes_are_refused(refused: Any) -> None:
    body = network()
    with refused("'nine'", "layer to widen"):
        apply(body, IMAGES, layer="nine", inputs=1, outputs=1)
    with refused("'2'", "ReLU", "only a Conv2d"):
        apply(body, IMAGES, layer="2", inputs=1, outputs=1)
    with refused("'0'", "3 outputs", "not 2"):
        apply(body, IMAGES, layer="0", inputs=1, outputs=2)
    with refused("'0'", str(MAX_UNITS), "not 99999999999"):
        apply(body, IMAGES, layer="0", inputs=1, outputs=99999999999)
    with refused("'1'", "as many inputs as outputs", "3 and 4"):
        apply(body, IMAGES, layer="1", inputs=3, outputs=4)
    with refused("cannot be repeated"):
        reapply(body, [{"operation": "widen", "layer": "0"}], IMAGES)
    assert applied_operations(body) == []
