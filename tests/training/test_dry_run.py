"""The dry run: mismatches are reported in one line before the first step, and no state changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.checks import Net, mlp
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers
from tutelage.terms import AttentionTransfer, CrossEntropy, Hint, SoftTargets, Term
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution
from tutelage.training.learner import ForwardPass


class Function(Term):
    """Returns a function of the student's logits."""

    reads_teacher = False

    def __init__(self, value: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.value = value

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        return self.value(student["logits"])  # type: ignore[no-any-return]


def raise_error(_: Tensor) -> Tensor:
    raise RuntimeError("a first line\nand a second")


MISMATCHES: dict[str, tuple[Callable[[Net], list[Learner]], tuple[str, ...]]] = {
    "a student with another number of classes": (
        lambda net: [Learner(net(classes=3), None, {"ce": CrossEntropy()})],
        ("model of learner 'student'", "(4, 3)", "4 classes of tiny", "give it a classifier with 4 outputs"),
    ),
    "a teacher with another number of classes": (
        lambda net: [Learner(net(), Frozen(net(classes=5)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "(4, 5)", "4 classes", "give it a classifier with 4 outputs"),
    ),
    "two teachers with different numbers of classes": (
        lambda net: [Learner(net(), Frozen(net(), net(classes=5)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "[4, 4]", "[4, 5]"),
    ),
    "a student with another number of input channels": (
        lambda net: [Learner(net(channels=3), None, {"ce": CrossEntropy()})],
        ("learner 'student' cannot take images of shape (1, 8, 8)", "3 channels"),
    ),
    "a teacher with another number of input channels": (
        lambda net: [Learner(net(), Frozen(net(channels=3)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "(1, 8, 8)", "3 channels"),
    ),
    "a term that returns a wrong shape": (
        lambda net: [Learner(net(), None, {"odd": Function(lambda logits: logits)})],
        ("term 'odd' of learner 'student'", "(4,)", "it returned shape (4, 4)"),
    ),
    "a term that returns no tensor": (
        lambda net: [Learner(net(), None, {"odd": Function(lambda logits: 0.0)})],
        ("term 'odd'", "it returned float"),
    ),
    "a term that raises": (
        lambda net: [Learner(net(), None, {"odd": Function(raise_error)})],
        ("term 'odd' of learner 'student'", "logits (4, 4)", "a first line"),
    ),
    "a term that needs a teacher": (
        lambda net: [Learner(net(), None, {"kd": SoftTargets()})],
        ("term 'kd' of learner 'student'", "has none; pass (student, teacher, batch)", "needs a teacher's outputs"),
    ),
    "a role that the teacher does not have": (
        lambda net: [Learner(net(), Frozen(mlp()), {"at": AttentionTransfer((("stage1", "stage2"),))})],
        ("Sequential has no role 'stage2'", "it has embedding", "Name its layers by hand"),
    ),
    "a role that the student does not have": (
        lambda net: [Learner(mlp(), Frozen(net()), {"hint": Hint("stage1", "stage1")})],
        ("Sequential has no role 'stage1'", "Name its layers by hand"),
    ),
    "different channels and no regressor": (
        lambda net: [
            Learner(net(), Frozen(net(width=6)), {"hint": Hint("stage1", "stage1", use_regressor="never")}),
        ],
        ("stage1 (4, 8, 8)", "stage1 (6, 8, 8)", "allow a regressor"),
    ),
    "feature maps that no convolution can match": (
        lambda net: [
            Learner(net(), Frozen(tall(net)), {"hint": Hint("stage1", "stage1")}),
        ],
        ("(4, 8, 8)", "(4, 12, 4)", "name other layers"),
    ),
    "two learners with the same name": (
        lambda net: [Learner(net(), None, {"ce": CrossEntropy()}), Learner(net(1), None, {"ce": CrossEntropy()})],
        ("different names", "['student', 'student']"),
    ),
    "no learner": (lambda net: [], ("at least one learner",)),
    "peers outside the fit": (
        lambda net: [Learner(net(), Peers(net(1)), {"kd": SoftTargets()})],
        ("1 of 1 peers", "fit them together"),
    ),
    "nothing to train": (
        lambda net: [Learner(net(), None, {"ce": CrossEntropy()}, trainable=lambda name: False)],
        ("learner 'student' has nothing to train", "trainable=..."),
    ),
}


def tall(net: Net) -> Tapped:
    """A network with a first feature map of another aspect ratio than the input."""

    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, (1, 5), padding=(2, 0))
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]

    return Tapped(Tall(), roles={"stage1": "conv"})


@pytest.mark.parametrize(("make", "fragments"), MISMATCHES.values(), ids=list(MISMATCHES))
def test_mismatch_is_reported_in_one_line(
    make: Any, fragments: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    with refused(*fragments):
        fit(*make(tiny_model), data=tiny_data, recipe=Recipe(epochs=1), execution=Execution.on(on_cpu))


@pytest.mark.parametrize("as_teacher", [False, True])
def test_network_without_bfloat16_support_is_refused_with_advice_to_use_float32(
    as_teacher: bool, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    class ThroughNumpy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs.flatten(1))
            logits.detach().numpy()  # NumPy has no bfloat16
            return logits

    unsupported = Tapped(ThroughNumpy(64, 4))
    learner = (
        Learner(tiny_model(), Frozen(unsupported), {"kd": SoftTargets()})
        if as_teacher
        else Learner(unsupported, None, {"ce": CrossEntropy()})
    )
    with refused("learner 'student'", "BFloat16; try --precision float32"):
        fit(
            learner,
            data=tiny_data,
            recipe=Recipe(epochs=1),
            execution=Execution.on(on_cpu.replace(precision="bfloat16")),
        )
    fit(learner, data=tiny_data, recipe=Recipe(epochs=1), execution=Execution.on(on_cpu))


def test_model_as_its_own_frozen_teacher_is_refused(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    model = tiny_model()
    with refused("learner 'me' has nothing to train", "frozen teacher"):
        fit(
            Learner(model, Frozen(model), {"kd": SoftTargets()}, name="me"),
            data=tiny_data,
            execution=Execution.on(on_cpu),
        )


def test_same_model_in_two_learners_is_refused(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    """The outputs of learners are stored by model."""
    model = tiny_model()
    with refused("'a'", "'b'", "same model"):
        fit(
            Learner(model, None, {"ce": CrossEntropy()}, name="a"),
            Learner(model, None, {"ce": CrossEntropy()}, name="b"),
            data=tiny_data,
            execution=Execution.on(on_cpu),
        )


def test_learner_without_terms_is_refused(tiny_model: Net) -> None:
    with pytest.raises(TutelageError, match="at least one term"):
        Learner(tiny_model(), None, {})


def test_dry_run_accepts_fewer_samples_than_its_batch(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    from dataclasses import replace

    data = replace(tiny_data, train=tiny_data.train.subset(torch.arange(2)))
    fit_result = fit(
        Learner(tiny_model(), None, {"ce": CrossEntropy()}),
        data=data,
        recipe=Recipe(epochs=1),
        execution=Execution.on(on_cpu),
    )
    assert len(fit_result.history) == 1


def test_dry_run_changes_no_state(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Callable[..., Any], changed: Callable[..., set[str]]
) -> None:
    """Training is stopped at its first batch: weights, statistics and modes are unchanged until then."""
    model, teacher = tiny_model(dropout=0.3), tiny_model(seed=1, width=6)
    ema = EMA(model)
    model.module.get_submodule("bn2").eval()
    before = [state_of(m) for m in (model, teacher, ema.model)]
    modes = {name: module.training for name, module in model.named_modules()}
    modes_after: dict[str, bool] = {}

    def example_batch(forward_pass: ForwardPass, progress: float) -> Tensor:
        raise KeyboardInterrupt

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:  # called right after the dry run
        modes_after.update((name, module.training) for name, module in model.named_modules())
        return torch.optim.SGD(parameters, lr=0.1)

    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    with pytest.raises(KeyboardInterrupt):
        fit(
            Learner(model, Frozen(teacher), terms, sample_weight=example_batch, name="a"),
            Learner(tiny_model(seed=2), ema, {"kd": SoftTargets()}, name="b"),
            data=tiny_data,
            recipe=Recipe(epochs=1, batch_size=16, optimizer=make_optimizer),
            execution=Execution.on(on_cpu),
        )
    assert modes_after == modes
    after = [state_of(m) for m in (model, teacher, ema.model)]
    differences = [changed(*pair) for pair in zip(before, after, strict=True)]
    # The learner itself has run its first forward pass in train mode, which updates its running statistics.
    assert all("running" in name or "tracked" in name for name in differences[0])
    assert differences[1:] == [set(), set()]


def test_failed_dry_run_changes_no_weights_or_modes(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Callable[..., Any], changed: Callable[..., set[str]]
) -> None:
    model = tiny_model().train()
    before = state_of(model)
    with pytest.raises(TutelageError):
        fit(Learner(model, None, {"kd": SoftTargets()}), data=tiny_data, execution=Execution.on(on_cpu))
    assert changed(before, state_of(model)) == set()
    assert all(module.training for module in model.modules())


def test_random_numbers_of_training_do_not_depend_on_built_regressors(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    runs = []
    for unused_terms in ({}, {"hint": 0 * Hint("stage1", "stage1", use_regressor="always")}):
        numbers: list[float] = []

        def weight(forward_pass: ForwardPass, progress: float, numbers: list[float] = numbers) -> Tensor:
            numbers += [torch.rand(()).item(), float(np.random.rand()), random.random()]
            return torch.ones(len(forward_pass.batch))

        learner = Learner(
            tiny_model(), Frozen(tiny_model(1)), {"ce": CrossEntropy()} | unused_terms, sample_weight=weight
        )
        fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
        runs.append(numbers)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 9


def test_initial_regressor_depends_only_on_the_seed(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.rand(3)
        term = Hint("stage1", "stage1")
        no_updates = Recipe(epochs=1, batch_size=48, lr=1e-30, weight_decay=0)
        learner = Learner(tiny_model(), Frozen(tiny_model(1, width=6)), {"hint": term})
        fit(learner, data=tiny_data, recipe=no_updates, execution=Execution.on(on_cpu), seed=seed)
        weights.append(copy.deepcopy(term.regressor.weight))  # type: ignore[union-attr]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_initial_regressor_does_not_depend_on_the_memory_format(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """A student with dropout draws random numbers in the trial passes of channels-last memory."""
    weights = []
    for channels_last in (False, True):
        term = Hint("stage1", "stage1")
        no_updates = Recipe(epochs=1, batch_size=48, lr=1e-30, weight_decay=0)
        learner = Learner(tiny_model(dropout=0.3), Frozen(tiny_model(1, width=6)), {"hint": term})
        hardware = on_cpu.replace(channels_last=channels_last)
        fit(learner, data=tiny_data, recipe=no_updates, execution=Execution.on(hardware), seed=0)
        weights.append(copy.deepcopy(term.regressor.weight))  # type: ignore[union-attr]
    assert torch.equal(*weights)
