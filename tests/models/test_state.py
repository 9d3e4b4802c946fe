"""Checks of states, lazy layers and shared tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.fingerprint import fingerprint
from tutelage.models.load import make_model
from tutelage.models.state import check_state, dtype_hint, initialise_lazy_layers, shared_tensors


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def with_buffer(value: Tensor, persistent: bool = True) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("table", value, persistent=persistent)
    return module


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (WithExtraState(2, 2), "'_extra_state' of its state is a dict"),
        (with_buffer(torch.eye(2).to_sparse()), "'table' of its state is a sparse tensor"),
        (with_buffer(torch.eye(2).to_sparse(), persistent=False), "'table' of its state is a sparse tensor"),
        (with_buffer(torch.empty(2, device="meta")), "'table' of its state is on the meta device"),
        (lazy(), "'0.weight' of its state has no shape yet"),
    ],
)
def test_invalid_state_entries_raise(network: nn.Module, problem: str, refused: Any) -> None:
    with refused("the teacher", problem):
        check_state("the teacher", network)
    with refused(problem):
        fingerprint(network)


def test_dense_tensors_of_any_dtype_are_valid() -> None:
    for value in (torch.arange(3), torch.zeros(2, dtype=torch.bool), torch.zeros(0), torch.tensor(1.0)):
        check_state("it", with_buffer(value))


def test_lazy_layers_are_initialised_without_updating_statistics() -> None:
    network = lazy()
    torch.manual_seed(3)
    assert initialise_lazy_layers(network, torch.rand(2, 1, 8, 8)) is network
    assert network[4].in_features == 144
    assert network[1].num_batches_tracked == 0
    assert network[1].running_mean.eq(0).all()
    assert all(module.training for module in network.modules())
    first = network[0].weight.clone()
    torch.manual_seed(3)
    assert torch.equal(initialise_lazy_layers(lazy(), torch.rand(2, 1, 8, 8))[0].weight, first)


def test_lazy_layers_that_do_not_fit_the_images_raise(refused: Any) -> None:
    with refused("lazy layers of Sequential", "(1, 8, 8)"):
        initialise_lazy_layers(nn.Sequential(nn.LazyLinear(4), nn.Linear(5, 2)), torch.zeros(2, 1, 8, 8))


def test_a_lazy_network_from_an_import_is_initialised(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_nets.py").write_text("from torch import nn\ndef net():\n    return nn.LazyConv2d(4, 8)\n")
    monkeypatch.chdir(tmp_path)
    module = make_model("lazy_nets:net", num_classes=4, input_shape=(1, 8, 8)).module
    assert module.get_parameter("weight").shape == (4, 1, 8, 8)


def test_shared_tensors() -> None:
    stem, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    a, b = nn.Sequential(stem, norm, nn.Linear(2, 3)), nn.Sequential(stem, norm, nn.Linear(2, 3))
    common = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert shared_tensors(a, b) == common
    tied_layer = nn.Linear(2, 3)
    tied_layer.weight = nn.Parameter(a[2].weight.data)  # another parameter in the same memory
    assert shared_tensors(tied_layer, a) == ["weight"]
    assert shared_tensors(nn.Linear(2, 2), a) == []


def test_dtype_hint() -> None:
    assert dtype_hint(nn.Linear(2, 2)) == dtype_hint(nn.ReLU()) == ""
    assert "float16" in dtype_hint(nn.Linear(2, 2).half())
    assert "float64" in dtype_hint(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
