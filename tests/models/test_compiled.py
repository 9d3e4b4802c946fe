"""Compiled networks: equal values and gradients, copies, and separate code for each network."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence

import pytest
import torch

from tests.models.networks import (
    hooks,
)
from tutelage.models.tapped import Tapped

COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler, g++ or c++, on the path")
def test_compiled_equals_eager_in_value_and_gradient(tiny_model: Callable[..., Tapped]) -> None:
    eager, compiled = tiny_model(), tiny_model()
    compiled.compile()
    inputs, roles = torch.rand(8, 1, 8, 8), ("logits", "stage1", "embedding")
    for _ in range(2):  # the second iteration runs the compiled code
        for model in (eager, compiled):
            model.zero_grad()
        expected, outputs = eager.tap(inputs, roles), compiled.tap(inputs, roles)
        assert outputs.features.keys() == expected.features.keys()
        for role in roles:
            torch.testing.assert_close(outputs[role], expected[role], rtol=1e-5, atol=1e-5)
        for result in (expected, outputs):
            sum((result[role] ** 2).mean() for role in roles).backward()  # type: ignore[union-attr]
        for actual, reference in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, reference.grad, rtol=1e-5, atol=1e-5)
        for actual, reference in zip(compiled.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-5)


@pytest.fixture
def lightly_compiled(tiny_model: Callable[..., Tapped]) -> Tapped:
    """With Dynamo only, which needs no C++ compiler."""
    model = tiny_model().eval()
    model.compile(backend="eager")
    model.tap(torch.rand(2, 1, 8, 8), ("logits", "stage1"))
    return model


def test_a_copy_of_a_compiled_network_runs_itself(lightly_compiled: Tapped) -> None:
    inputs, roles = torch.rand(2, 1, 8, 8), ("logits", "stage1")
    copied = copy.deepcopy(lightly_compiled)
    assert hooks(copied) == 0
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    for requested_roles in (roles, ("logits",), ("stage1",)):
        reference, actual = lightly_compiled.tap(inputs, requested_roles), copied.tap(inputs, requested_roles)
        assert not torch.allclose(reference[requested_roles[0]], actual[requested_roles[0]])
    torch.testing.assert_close(copied.tap(inputs)["logits"], copied(inputs))


def test_compiling_again_removes_the_earlier_hooks(lightly_compiled: Tapped) -> None:
    before, inputs = hooks(lightly_compiled), torch.rand(2, 1, 8, 8)
    assert before == 1
    lightly_compiled.compile(backend="eager")
    outputs = lightly_compiled.tap(inputs, ("logits", "stage1"))
    assert hooks(lightly_compiled) == before
    torch.testing.assert_close(outputs["logits"], lightly_compiled(inputs))


def test_networks_do_not_share_compiled_code(tiny_model: Callable[..., Tapped]) -> None:
    torch.compiler.reset()
    pixels, roles = torch.rand(4, 1, 8, 8), ("logits", "stage1")

    def check(model: Tapped, roles: Sequence[str]) -> None:
        expected = model.eval().tap(pixels, roles)
        model.compile(backend="eager")
        compiled = model.tap(pixels, roles)
        assert all(torch.equal(compiled[role], expected[role]) for role in roles)

    for width in range(3, 12):  # more than torch caches per code object
        check(tiny_model(width=width), roles)
    check(tiny_model(1), ("logits",))  # without hooks
    check(tiny_model(2), roles)
