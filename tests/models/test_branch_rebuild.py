"""Branched networks rebuilt from their recorded operations, and invalid operations in files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.branching import EXAMPLE, BranchedNetwork, sequential, zoo_network
from tutelage.data import Data
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.branch import apply
from tutelage.models.weights import save_weights
from tutelage.runs import open_model


def test_it_is_rebuilt_from_its_recorded_operations(branched_network: BranchedNetwork) -> None:
    network, plain, at, _ = branched_network
    assert applied_operations(network) == [{"operation": "branch", "at": at, "branches": 3, "combine": "gate"}]
    operations = applied_operations(network)
    rebuilt = reapply(copy.deepcopy(plain[1]), operations, EXAMPLE)
    assert operations == applied_operations(network) == applied_operations(rebuilt)
    assert list(rebuilt.state_dict()) == list(network.state_dict())
    rebuilt.load_state_dict(network.state_dict())
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_a_plain_network_has_no_operations() -> None:
    network = sequential()
    assert applied_operations(network) == []
    assert reapply(network, [], EXAMPLE) is network


PLAIN: dict[str, Any] = {"operation": "branch", "at": "layer1", "branches": 2}
INVALID_OPERATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown operation": ([{"operation": "brnch"}], ("unknown operation", "'brnch'", "did you mean 'branch'?")),
    "a module of python": ([{"operation": "os"}], ("unknown operation", "'os'")),
    "this folder": ([{"operation": "__init__"}], ("unknown operation",)),
    "a path": ([{"operation": "../load"}], ("unknown operation",)),
    "no operation": ([{"at": "layer1"}], ("unknown operation", "''")),
    "a list for a name": ([{"operation": ["branch"]}], ("unknown operation",)),
    "no list": ({"operation": "branch"}, ("surgery", "expected a list")),
    "text": ("branch", ("surgery", "expected a list")),
    "null": (None, ("surgery", "expected a list")),
    "a list of texts": (["branch"], ("surgery", "expected a list")),
    "no layer": ([{"operation": "branch"}], ("'branch' cannot be repeated", "at")),
    "an unknown layer": ([PLAIN | {"at": "layer9"}], ("unknown layer", "'layer9'")),
    "no name of a layer": ([PLAIN | {"at": ""}], ("unknown layer",)),
    "a number for a layer": ([PLAIN | {"at": 5}], ("'branch' cannot be repeated",)),
    "null for a layer": ([PLAIN | {"at": None}], ("'branch' cannot be repeated", "'at' is None")),
    "a list for a layer": ([PLAIN | {"at": ["layer1"]}], ("'branch' cannot be repeated", "list")),
    "a layer that does not run": ([PLAIN | {"at": "fc.nothing"}], ("unknown layer",)),
    "very many branches": ([PLAIN | {"branches": 10**12}], ("2 to 64 branches",)),
    "one branch": ([PLAIN | {"branches": 1}], ("2 to 64 branches, got 1",)),
    "minus one branch": ([PLAIN | {"branches": -1}], ("2 to 64 branches, got -1",)),
    "half a branch": ([PLAIN | {"branches": 2.5}], ("'branch' cannot be repeated",)),
    "text for a number": ([PLAIN | {"branches": "2"}], ("'branch' cannot be repeated",)),
    "true for a number": ([PLAIN | {"branches": True}], ("2 to 64 branches",)),
    "an unknown setting": ([PLAIN | {"run": "rm"}], ("'branch' cannot be repeated", "run")),
    "a setting of two lines": ([PLAIN | {"a\nb": "rm"}], ("'branch' cannot be repeated",)),
    "networks of text": ([PLAIN | {"others": ["x"]}], ("'branch' cannot be repeated", "'others'", "networks")),
    "no networks": ([PLAIN | {"others": []}], ("'branch' cannot be repeated", "'others'", "networks")),
    "a number of networks": ([PLAIN | {"others": 3}], ("'branch' cannot be repeated",)),
    "the network itself": ([PLAIN | {"network": "x"}], ("'branch' cannot be repeated", "network")),
    "branches of branches": ([PLAIN, PLAIN | {"at": "branches.0.layer1"}], ("has branches already",)),
    "other branches than it has": ([PLAIN | {"branches": 4}], ("weights", "lacks")),
}


@pytest.mark.parametrize(("surgery", "pieces"), INVALID_OPERATIONS.values(), ids=list(INVALID_OPERATIONS))
def test_invalid_operations_in_a_file_raise(
    surgery: Any, pieces: tuple[str, ...], tiny_data: Data, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    module = zoo_network("resnet8x0.25")()
    network = apply(module, EXAMPLE, at="layer1", branches=2)
    save_weights(tmp_path / "w.safetensors", network, {"surgery": surgery})
    with refused(*pieces):
        open_model(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", tiny_data)


def test_a_file_with_operations_is_opened(tiny_data: Data, tmp_path: Path) -> None:
    network = apply(zoo_network("resnet8x0.25")(), EXAMPLE, at="layer1", branches=2).eval()
    save_weights(tmp_path / "w.safetensors", network, {"surgery": [PLAIN], "mean": [0.0], "std": [1.0]})
    opened = open_model(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", tiny_data).eval()
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(opened(images), network(images))
