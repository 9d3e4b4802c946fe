"""Frozen: a teacher that does not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import AttentionTransfer, Hint, SoftTargets

ROLES = ("logits", "stage1", "stage2", "embedding")


@pytest.fixture
def teacher(tiny_model: Callable[..., Tapped], batch: Batch) -> Tapped:
    """A network with running statistics and dropout, whose outputs would differ in train mode."""
    model = tiny_model(dropout=0.5)
    for _ in range(3):
        model(batch.inputs)
    return model


MODE_CHANGES: dict[str, Callable[[Tapped], object]] = {
    "nothing": lambda teacher: None,
    "train()": lambda teacher: teacher.train(),
    "train() of its module": lambda teacher: teacher.module.train(),
    "train() of a layer": lambda teacher: teacher.module.bn2.train(),  # type: ignore[operator, union-attr]
    "train() of a parent": lambda teacher: nn.ModuleList([teacher]).train(),
    "requires_grad_()": lambda teacher: teacher.requires_grad_(True),
}


@pytest.mark.parametrize("change", MODE_CHANGES.values(), ids=MODE_CHANGES.keys())
@pytest.mark.parametrize("roles", [("logits",), ROLES, ("stage1",)])
@pytest.mark.parametrize("is_bare", [False, True])
def test_frozen_teacher_runs_in_eval_mode_and_does_not_change(
    is_bare: bool,
    change: Callable[[Tapped], object],
    roles: tuple[str, ...],
    teacher: Tapped,
    batch: Batch,
    state_of: Any,
    changed: Any,
) -> None:
    before = state_of(teacher)
    expected = (Tapped(teacher.module) if is_bare else teacher).eval().tap(batch.inputs, roles)
    teacher.train()
    source = Frozen(teacher.module if is_bare else teacher)
    modes: list[bool] = []
    for module in teacher.modules():
        module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for _ in range(5):
        change(teacher)
        for outputs in (source(batch, roles, {}), source(batch.inputs, roles)):
            for role in roles:
                assert not outputs[role].requires_grad
                assert torch.equal(outputs[role], expected[role])
    assert modes
    assert not any(modes)
    assert changed(before, state_of(teacher)) == set()


def test_frozen_disables_gradients_of_the_teacher(teacher: Tapped) -> None:
    Frozen(teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_gradients_reach_the_student_but_not_the_teacher(
    teacher: Tapped, tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    student, source, before = tiny_model(seed=1), Frozen(teacher), state_of(teacher)
    terms = [SoftTargets(), AttentionTransfer((("stage1", "stage1"),)), Hint("stage2", "stage2")]
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1)
    for _ in range(3):
        teacher.train()
        student_outputs, teacher_outputs = student.tap(batch.inputs, ROLES), source(batch, ROLES, {})
        optimizer.zero_grad()
        for term in terms:
            term.build(student_outputs, teacher_outputs)
        torch.stack([term(student_outputs, teacher_outputs, batch).mean() for term in terms]).sum().backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert changed(before, state_of(teacher)) == set()


def test_ensemble_averages_probabilities_and_has_member_outputs(
    tiny_model: Callable[..., Tapped], batch: Batch
) -> None:
    teachers = [tiny_model(seed=seed, width=width) for seed, width in ((0, 4), (1, 6), (2, 5))]
    source = Frozen(*teachers)
    outputs = source(batch, ROLES, {})
    separate = [Frozen(teacher)(batch, ROLES, {}) for teacher in teachers]
    for temperature in (1.0, 4.0):
        probabilities = [(member["logits"] / temperature).softmax(1).tolist() for member in separate]
        mean = [[sum(column) / 3 for column in zip(*rows, strict=True)] for rows in zip(*probabilities, strict=True)]
        torch.testing.assert_close(outputs.log_probs(temperature).exp(), torch.tensor(mean))
    assert len(outputs.members) == 3
    for member, expected in zip(outputs.members, separate, strict=True):
        assert all(torch.equal(member[role], expected[role]) for role in ROLES)
    assert not any(module.training for teacher in teachers for module in teacher.modules())


def test_features_of_an_ensemble_are_refused(tiny_model: Callable[..., Tapped], batch: Batch, refused: Any) -> None:
    outputs = Frozen(tiny_model(seed=0), tiny_model(seed=1))(batch, ("stage1",), {})
    with refused("no 'stage1'", "an ensemble has no common features; use one teacher"):
        outputs["stage1"]


def test_frozen_has_no_state(teacher: Tapped, state_of: Any, changed: Any) -> None:
    source, before = Frozen(teacher), state_of(teacher)
    source.after_step()
    assert source.state_dict() == {}
    source.load_state_dict({})
    assert changed(before, state_of(teacher)) == set()


def test_models_are_all_teachers(tiny_model: Callable[..., Tapped]) -> None:
    teachers = (tiny_model(seed=0), tiny_model(seed=1))
    assert Frozen(*teachers).models == teachers


def test_layers_added_later_run_in_eval_mode_too(teacher: Tapped, batch: Batch) -> None:
    source = Frozen(teacher)
    teacher.module.add_module("late", torch.nn.Dropout())
    source(batch, ("logits",), {})
    assert not any(module.training for module in teacher.modules())


def test_frozen_without_a_teacher_is_refused() -> None:
    with pytest.raises(TutelageError, match="at least one teacher"):
        Frozen()


def test_loss_of_a_student_equal_to_the_teacher_is_0(teacher: Tapped, batch: Batch) -> None:
    outputs = Frozen(teacher)(batch, ("logits",), {})
    assert SoftTargets()(Outputs(outputs["logits"].clone()), outputs, batch).abs().max() == 0


def test_bare_module_is_refused_by_objects_that_need_a_wrapped_network(
    teacher: Tapped, refused: Callable[..., Any]
) -> None:
    from tutelage.attacks.adversarial import AdversarialSamples
    from tutelage.attacks.boundary import BoundarySamples
    from tutelage.sources import OwnOutputs, Peers
    from tutelage.terms import CrossEntropy
    from tutelage.training import Learner

    module = teacher.module
    makers: dict[str, Callable[[], object]] = {
        "Peers": lambda: Peers(module),  # type: ignore[arg-type]
        "OwnOutputs": lambda: OwnOutputs(module),  # type: ignore[arg-type]
        "Learner": lambda: Learner(module, None, {"ce": CrossEntropy()}),  # type: ignore[arg-type]
        "AdversarialSamples": lambda: AdversarialSamples(module, 0.1, 0.1, 1),  # type: ignore[arg-type]
        "BoundarySamples": lambda: BoundarySamples(module),  # type: ignore[arg-type]
    }
    for name, make in makers.items():
        with refused(f"{name} takes networks wrapped as Tapped(module, mean, std)", type(module).__name__):
            make()
    with refused("Frozen takes networks", "given a str"):
        Frozen("resnet8")  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in module.parameters())
