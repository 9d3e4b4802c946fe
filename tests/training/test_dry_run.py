"""What does not fit is said before the first step, in one line, and nothing has moved."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers
from tutelage.terms import AttentionTransfer, CrossEntropy, Hint, SoftTargets, Term
from tutelage.training import Learner, Run, fit
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]


class Given(Term):
    """Gives what a function of the student's logits gives."""

    def __init__(self, value: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.value = value

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        return self.value(student["logits"])  # type: ignore[no-any-return]


def mlp(classes: int = 4) -> Tapped:
    return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes)))


def raising(_: Tensor) -> Tensor:
    raise RuntimeError("a first line\nand a second")


WRONG: dict[str, tuple[Callable[[Net], list[Learner]], tuple[str, ...]]] = {
    "a student of other classes": (
        lambda net: [Learner(net(classes=3), None, {"ce": CrossEntropy()})],
        ("model of learner 'student'", "(4, 3)", "4 classes of tiny", "give it a classifier with 4 outputs"),
    ),
    "a teacher of other classes": (
        lambda net: [Learner(net(), Frozen(net(classes=5)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "(4, 5)", "4 classes", "give it a classifier with 4 outputs"),
    ),
    "two teachers of different classes": (
        lambda net: [Learner(net(), Frozen(net(), net(classes=5)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "[4, 4]", "[4, 5]"),
    ),
    "a student of other channels": (
        lambda net: [Learner(net(channels=3), None, {"ce": CrossEntropy()})],
        ("learner 'student' cannot take images of shape (1, 8, 8)", "3 channels"),
    ),
    "a teacher of other channels": (
        lambda net: [Learner(net(), Frozen(net(channels=3)), {"kd": SoftTargets()})],
        ("teacher of learner 'student'", "(1, 8, 8)", "3 channels"),
    ),
    "a term of a wrong shape": (
        lambda net: [Learner(net(), None, {"odd": Given(lambda logits: logits)})],
        ("term 'odd' of learner 'student'", "(4,)", "it returned shape (4, 4)"),
    ),
    "a term that gives no tensor": (
        lambda net: [Learner(net(), None, {"odd": Given(lambda logits: 0.0)})],
        ("term 'odd'", "it returned float"),
    ),
    "a term that raises": (
        lambda net: [Learner(net(), None, {"odd": Given(raising)})],
        ("term 'odd' of learner 'student'", "logits (4, 4)", "teacher none", "a first line"),
    ),
    "a term that wants a teacher": (
        lambda net: [Learner(net(), None, {"kd": SoftTargets()})],
        ("term 'kd' of learner 'student'", "teacher none", "needs a teacher's outputs"),
    ),
    "a role that the teacher has not": (
        lambda net: [Learner(net(), Frozen(mlp()), {"at": AttentionTransfer((("stage1", "stage2"),))})],
        ("Sequential has no role 'stage2'", "it has embedding", "Name its layers by hand"),
    ),
    "a role that the student has not": (
        lambda net: [Learner(mlp(), Frozen(net()), {"hint": Hint("stage1", "stage1")})],
        ("Sequential has no role 'stage1'", "Name its layers by hand"),
    ),
    "channels that differ and no projection": (
        lambda net: [
            Learner(net(), Frozen(net(width=6)), {"hint": Hint("stage1", "stage1", use_regressor="never")}),
        ],
        ("stage1 (4, 8, 8)", "stage1 (6, 8, 8)", "allow a regressor"),
    ),
    "maps that no convolution joins": (
        lambda net: [
            Learner(net(), Frozen(tall(net)), {"hint": Hint("stage1", "stage1")}),
        ],
        ("(4, 8, 8)", "(4, 12, 4)", "name other layers"),
    ),
    "two learners of one name": (
        lambda net: [Learner(net(), None, {"ce": CrossEntropy()}), Learner(net(1), None, {"ce": CrossEntropy()})],
        ("different names", "['student', 'student']"),
    ),
    "no learner": (lambda net: [], ("at least one learner",)),
    "peers that are not in the fit": (
        lambda net: [Learner(net(), Peers(net(1)), {"kd": SoftTargets()})],
        ("1 of 1 peers", "fit them together"),
    ),
    "nothing to train": (
        lambda net: [Learner(net(), None, {"ce": CrossEntropy()}, trainable=lambda name: False)],
        ("learner 'student' has nothing to train", "trainable=..."),
    ),
}


def tall(net: Net) -> Tapped:
    """A network whose first map is higher and narrower than it should be."""

    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, (1, 5), padding=(2, 0))
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]

    return Tapped(Tall(), roles={"stage1": "conv"})


@pytest.mark.parametrize(("make", "pieces"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_said_in_one_line(
    make: Any, pieces: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    with refused(*pieces):
        fit(*make(tiny_model), data=tiny_data, recipe=Recipe(epochs=1), hardware=on_cpu)


@pytest.mark.parametrize("teaches", [False, True])
def test_what_bfloat16_is_not_made_for_is_told_of_the_other_precision(
    teaches: bool, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    class ThroughNumpy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs.flatten(1))
            logits.detach().numpy()  # has no bfloat16
            return logits

    through = Tapped(ThroughNumpy(64, 4))
    learner = (
        Learner(tiny_model(), Frozen(through), {"kd": SoftTargets()})
        if teaches
        else Learner(through, None, {"ce": CrossEntropy()})
    )
    with refused("learner 'student'", "BFloat16; try --precision float32"):
        fit(learner, data=tiny_data, recipe=Recipe(epochs=1), hardware=on_cpu.replace(precision="bfloat16"))
    fit(learner, data=tiny_data, recipe=Recipe(epochs=1), hardware=on_cpu)


def test_a_model_that_is_its_own_frozen_teacher(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    model = tiny_model()
    with refused("learner 'me' has nothing to train", "frozen teacher"):
        fit(Learner(model, Frozen(model), {"kd": SoftTargets()}, name="me"), data=tiny_data, hardware=on_cpu)


def test_a_model_in_two_learners(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    """Their outputs are told apart by the model."""
    model = tiny_model()
    with refused("'a'", "'b'", "same model"):
        fit(
            Learner(model, None, {"ce": CrossEntropy()}, name="a"),
            Learner(model, None, {"ce": CrossEntropy()}, name="b"),
            data=tiny_data,
            hardware=on_cpu,
        )


def test_a_learner_without_terms_is_refused(tiny_model: Net) -> None:
    with pytest.raises(ValueError, match="at least one term"):
        Learner(tiny_model(), None, {})


def test_too_few_samples_for_the_dry_run_are_no_harm(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    from dataclasses import replace

    data = replace(tiny_data, train=tiny_data.train.subset(torch.arange(2)))
    fitted = fit(
        Learner(tiny_model(), None, {"ce": CrossEntropy()}), data=data, recipe=Recipe(epochs=1), hardware=on_cpu
    )
    assert len(fitted.history) == 1


def test_the_dry_run_moves_nothing(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Callable[..., Any], changed: Callable[..., set[str]]
) -> None:
    """It is stopped where the first batch would come: weights, statistics and modes are as they were."""
    model, teacher = tiny_model(dropout=0.3), tiny_model(seed=1, width=6)
    ema = EMA(model)
    model.module.get_submodule("bn2").eval()
    before = [state_of(m) for m in (model, teacher, ema.model)]
    modes = {name: module.training for name, module in model.named_modules()}
    seen: dict[str, Any] = {}

    def example_batch(forward_pass: ForwardPass, progress: float) -> Tensor:
        raise KeyboardInterrupt

    def watched(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:  # made right after the dry run
        seen["modes"] = {name: module.training for name, module in model.named_modules()}
        return torch.optim.SGD(parameters, lr=0.1)

    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    with pytest.raises(KeyboardInterrupt):
        fit(
            Learner(model, Frozen(teacher), terms, sample_weight=example_batch, name="a"),
            Learner(tiny_model(seed=2), ema, {"kd": SoftTargets()}, name="b"),
            data=tiny_data,
            recipe=Recipe(epochs=1, batch_size=16, optimizer=watched),
            hardware=on_cpu,
        )
    assert seen["modes"] == modes
    after = [state_of(m) for m in (model, teacher, ema.model)]
    moved = [changed(*pair) for pair in zip(before, after, strict=True)]
    # the first step's forward in train mode has happened to the learner itself, and to nothing else
    assert all("running" in name or "tracked" in name for name in moved[0])
    assert moved[1:] == [set(), set()]


def test_a_failed_dry_run_leaves_weights_and_modes(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Callable[..., Any], changed: Callable[..., set[str]]
) -> None:
    model = tiny_model().train()
    before = state_of(model)
    with pytest.raises(TutelageError):
        fit(Learner(model, None, {"kd": SoftTargets()}), data=tiny_data, hardware=on_cpu)
    assert changed(before, state_of(model)) == set()
    assert all(module.training for module in model.modules())


def test_the_generators_that_training_sees_do_not_depend_on_what_is_built(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    drawn = []
    for unused in ({}, {"hint": 0 * Hint("stage1", "stage1", use_regressor="always")}):
        numbers: list[float] = []

        def weight(forward_pass: ForwardPass, progress: float, numbers: list[float] = numbers) -> Tensor:
            numbers += [torch.rand(()).item(), float(np.random.rand()), random.random()]
            return torch.ones(len(forward_pass.batch))

        learner = Learner(tiny_model(), Frozen(tiny_model(1)), {"ce": CrossEntropy()} | unused, sample_weight=weight)
        fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
        drawn.append(numbers)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 9


def test_a_projection_depends_on_the_seed_alone(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    first = []
    for seed in (0, 0, 1):
        torch.rand(3)
        term = Hint("stage1", "stage1")
        never = Recipe(epochs=1, batch_size=48, lr=1e-30, weight_decay=0)
        learner = Learner(tiny_model(), Frozen(tiny_model(1, width=6)), {"hint": term})
        fit(learner, data=tiny_data, recipe=never, hardware=on_cpu, seed=seed)
        first.append(copy.deepcopy(term.regressor.weight))  # type: ignore[union-attr]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


# --- what a run says before anything is fitted


def run_with(data: Data, student: Callable[[], Tapped], *teachers: Tapped) -> Run:
    return Run(data, student, teachers)


def test_a_method_that_needs_a_teacher_says_how_to_give_one(
    tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("needs a teacher", "--teacher", "teacher=..."):
        run_with(tiny_data, tiny_model).teacher()


def test_a_method_of_layers_refuses_two_teachers(tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]) -> None:
    with refused("got 2", "give it one"):
        run_with(tiny_data, tiny_model, tiny_model(1), tiny_model(2)).teacher()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_stages_of_a_network_without_maps(
    who: str, tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    networks = {"student": tiny_model(), "teacher": tiny_model(1)} | {who: mlp()}
    with refused(f"the {who}, Sequential", "no feature maps", "embedding", "roles="):
        run_with(tiny_data, tiny_model).paired_stages(networks["student"], networks["teacher"])


def test_stages_are_paired_from_the_last(tiny_data: Data, tiny_model: Net) -> None:
    from tutelage.models.load import make_model

    resnet = Tapped(make_model("resnet8", num_classes=4, input_shape=(1, 8, 8)).module)
    run = run_with(tiny_data, tiny_model)
    assert run.paired_stages(tiny_model(), resnet) == (("stage1", "stage2"), ("stage2", "stage3"))
    assert run.paired_stages(resnet, tiny_model()) == (("stage2", "stage1"), ("stage3", "stage2"))


def test_changes_of_a_fit_are_checked(tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]) -> None:
    run = run_with(tiny_data, tiny_model)
    with refused("'epoch'", "did you mean 'epochs'"):
        run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), epoch=3)


def test_students_of_a_number_depend_on_seed_and_number_alone(
    tiny_data: Data, changed: Callable[..., set[str]]
) -> None:
    def fresh() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))

    states = {}
    for seed in (0, 1):
        run = Run(tiny_data, fresh, seed=seed)
        torch.rand(5)
        before = torch.get_rng_state()
        states[seed] = [run.student(number).state_dict() for number in (0, 1, 0)]
        assert torch.equal(before, torch.get_rng_state())
        assert changed(states[seed][0], states[seed][2]) == set()
        assert changed(states[seed][0], states[seed][1])
    assert changed(states[0][0], states[1][0])
