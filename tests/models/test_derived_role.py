"""Derived roles: what their text says, and that they are asked for as any role is."""

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


def doubled(logits: Tensor) -> Tensor:
    return 2 * logits


MEANS, PRODUCT = DerivedRole(means, "stage1", power=2.0), DerivedRole(product, "stage1", "stage2")


def test_the_text_names_function_roles_and_parameters() -> None:
    assert MEANS == "means(stage1, power=2.0)"
    assert PRODUCT == "product(stage1, stage2)"
    assert DerivedRole(means, "stage1", power=2.0) == MEANS != DerivedRole(means, "stage1", power=3.0)
    assert {MEANS: 1}[DerivedRole(means, "stage1", power=2.0)] == 1
    assert (MEANS.bases, PRODUCT.bases) == (("stage1",), ("stage1", "stage2"))


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda role: pickle.loads(pickle.dumps(role))])
def test_a_copy_is_the_same_function(through: Callable[[DerivedRole], DerivedRole]) -> None:
    other, features = through(MEANS), torch.rand(2, 3, 4, 4)
    assert (type(other), str(other), other.bases) == (DerivedRole, str(MEANS), MEANS.bases)
    assert torch.equal(other.compute(features), means(features, 2.0))


ASKED: list[list[str]] = [[MEANS], [PRODUCT, MEANS], [MEANS, "stage1"], ["logits", PRODUCT], [MEANS, "embedding"]]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_tap_gives_what_is_asked_and_nothing_else(asked: list[str], compiled: bool, tiny_model: Net) -> None:
    model = tiny_model().eval()
    if compiled:
        model.compile(backend="eager")
    whole = model.tap(INPUTS, ("logits", "stage1", "stage2", "embedding"))
    found = model.tap(INPUTS, asked)
    assert found.features.keys() == set(asked) - {"logits"}
    assert (found.logits is not None) == ("logits" in asked)
    assert all(torch.equal(found[role], whole[role]) for role in asked)
    assert torch.equal(whole[MEANS], means(whole["stage1"], 2.0))
    assert torch.equal(whole[PRODUCT], product(whole["stage1"], whole["stage2"]))
    assert model.passes == 2 * len(INPUTS)


def test_of_logits_that_nobody_asked_for(tiny_model: Net) -> None:
    model, role = tiny_model().eval(), DerivedRole(doubled, "logits")
    found = model.tap(INPUTS, (role,))
    assert found.logits is None
    assert torch.equal(found[role], 2 * model(INPUTS))


def test_the_pass_ends_at_the_last_of_its_roles(tiny_model: Net) -> None:
    model = tiny_model().trace(INPUTS)
    model.module.get_submodule("conv2").register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    assert model.tap(INPUTS, (MEANS,))[MEANS].shape == (4, 4)


def test_it_is_computed_in_float32_under_autocast(tiny_model: Net) -> None:
    model = tiny_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.tap(INPUTS, (PRODUCT, "stage1", "stage2"))
    expected = product(found["stage1"], found["stage2"])
    assert found[PRODUCT].dtype == torch.float32
    assert torch.equal(found[PRODUCT], expected)


def test_a_role_that_is_missing_is_named(tiny_model: Net, refused: Any) -> None:
    role = DerivedRole(means, "stage7")
    with refused("TinyNet has no role 'stage7'", "it has stem, stage1", "by hand"):
        tiny_model().tap(INPUTS, (role,))
    with refused("no 'stage7' in these outputs", "they hold stage1", "name it in `roles`"):
        Outputs(None, {"stage1": torch.rand(1, 1, 2, 2)})[role]
    with refused("no 'stage7'", "an ensemble has no common features"):
        Outputs.ensemble((Outputs(None), Outputs(None)))[role]
