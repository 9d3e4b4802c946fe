"""Derived roles: their strings, and their values in ``tap``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.models import DerivedRole, Outputs, Tapped

Net = Callable[..., Tapped]
INPUTS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def means(features: Tensor, power: float = 1.0) -> Tensor:
    return features.pow(power).mean((2, 3))


def product(first: Tensor, second: Tensor) -> Tensor:
    return first.mean((2, 3)).unsqueeze(2) @ second.mean((2, 3)).unsqueeze(1)


def doubled_logits(logits: Tensor) -> Tensor:
    return 2 * logits


MEANS, PRODUCT = DerivedRole(means, "stage1", power=2.0), DerivedRole(product, "stage1", "stage2")


def test_the_string_contains_function_roles_and_parameters() -> None:
    assert MEANS == "means(stage1, power=2.0)"
    assert PRODUCT == "product(stage1, stage2)"
    assert DerivedRole(means, "stage1", power=2.0) == MEANS != DerivedRole(means, "stage1", power=3.0)
    assert {MEANS: 1}[DerivedRole(means, "stage1", power=2.0)] == 1
    assert (MEANS.bases, PRODUCT.bases) == (("stage1",), ("stage1", "stage2"))


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, lambda role: pickle.loads(pickle.dumps(role))])
def test_copies_compute_the_same(copy_of: Callable[[DerivedRole], DerivedRole]) -> None:
    copied, features = copy_of(MEANS), torch.rand(2, 3, 4, 4)
    assert (type(copied), str(copied), copied.bases) == (DerivedRole, str(MEANS), MEANS.bases)
    assert torch.equal(copied.compute(features), means(features, 2.0))


REQUESTS: list[list[str]] = [[MEANS], [PRODUCT, MEANS], [MEANS, "stage1"], ["logits", PRODUCT], [MEANS, "embedding"]]


@pytest.mark.parametrize("requested_roles", REQUESTS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_tap_returns_exactly_the_requested_roles(requested_roles: list[str], compiled: bool, tiny_model: Net) -> None:
    model = tiny_model().eval()
    if compiled:
        model.compile(backend="eager")
    all_roles = model.tap(INPUTS, ("logits", "stage1", "stage2", "embedding"))
    outputs = model.tap(INPUTS, requested_roles)
    assert outputs.features.keys() == set(requested_roles) - {"logits"}
    assert (outputs.logits is not None) == ("logits" in requested_roles)
    assert all(torch.equal(outputs[role], all_roles[role]) for role in requested_roles)
    assert torch.equal(all_roles[MEANS], means(all_roles["stage1"], 2.0))
    assert torch.equal(all_roles[PRODUCT], product(all_roles["stage1"], all_roles["stage2"]))
    assert model.passes == 2 * len(INPUTS)


def test_roles_derived_from_logits_do_not_return_logits(tiny_model: Net) -> None:
    model, role = tiny_model().eval(), DerivedRole(doubled_logits, "logits")
    outputs = model.tap(INPUTS, (role,))
    assert outputs.logits is None
    assert torch.equal(outputs[role], 2 * model(INPUTS))


def test_the_pass_stops_at_the_last_base(tiny_model: Net) -> None:
    model = tiny_model().trace(INPUTS)
    model.module.get_submodule("conv2").register_forward_pre_hook(lambda *_: pytest.fail("a later layer ran"))
    assert model.tap(INPUTS, (MEANS,))[MEANS].shape == (4, 4)


def test_values_are_float32_under_autocast(tiny_model: Net) -> None:
    model = tiny_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.tap(INPUTS, (PRODUCT, "stage1", "stage2"))
    expected = product(outputs["stage1"], outputs["stage2"])
    assert outputs[PRODUCT].dtype == torch.float32
    assert torch.equal(outputs[PRODUCT], expected)


def test_a_missing_base_raises(tiny_model: Net, refused: Any) -> None:
    role = DerivedRole(means, "stage7")
    with refused("TinyNet has no role 'stage7'", "it has stem, stage1", "by hand"):
        tiny_model().tap(INPUTS, (role,))
    with refused("no 'stage7' in these outputs", "they hold stage1", "name it in `roles`"):
        Outputs(None, {"stage1": torch.rand(1, 1, 2, 2)})[role]
    with refused("no 'stage7'", "an ensemble has no common features"):
        Outputs.ensemble((Outputs(None), Outputs(None)))[role]
