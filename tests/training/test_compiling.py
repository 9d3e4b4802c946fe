"""Networks are compiled if that saves time, and compiled networks train to the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run, fit
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.compiling import FIRST, LAST, PAYS_AFTER, Compiling
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]
METHODS = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


@pytest.fixture
def dynamo_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile by Dynamo alone, without the stages that need a C++ compiler and minutes."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled(function, backend="eager"))
    torch.compiler.reset()


class Clock:
    """A clock on which one training step takes ``pace`` seconds."""

    def __init__(self, seconds_per_step: float) -> None:
        self.seconds_per_step, self.time = seconds_per_step, 0.0

    def __call__(self) -> float:
        self.time += self.seconds_per_step * (LAST - FIRST)
        return self.time


def decision(model: Tapped, setting: Any, seconds_per_step: float, steps: int = 1000) -> tuple[int | None, bool | None]:
    """The step at which the network was compiled (None: never), and the decision."""
    compiling = Compiling([model], setting, steps, Clock(seconds_per_step))
    compiling.start()
    try:
        for step in range(steps):
            if model._compiled is not None:
                return step, compiling.decided
            compiling.before(step)
        return None, compiling.decided
    finally:
        compiling.stop()
        assert model._compiled is None


@pytest.mark.usefixtures("dynamo_only")
def test_only_long_runs_are_compiled(tiny_model: Net) -> None:
    seconds_per_step = PAYS_AFTER / (1000 - LAST)  # at this pace the remaining steps take exactly PAYS_AFTER seconds
    assert decision(tiny_model(), "auto", 1.01 * seconds_per_step) == (LAST + 1, True)
    assert decision(tiny_model(), "auto", 0.99 * seconds_per_step) == (None, False)
    assert decision(tiny_model(), "auto", 1e9, steps=LAST) == (None, None)
    assert decision(tiny_model(), True, 0.0) == (0, True)
    assert decision(tiny_model(), False, 1e9) == (None, False)


@pytest.mark.usefixtures("dynamo_only")
def test_resume_keeps_the_decision_to_compile(
    tiny_model: Net, tiny_data: Data, on_cpu: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=8, batch_size=8)  # six steps an epoch

    def train(epochs: int) -> Tapped:
        model = tiny_model()
        learner = Learner(model, None, {"ce": CrossEntropy()})
        stop = lambda history: len(history) == epochs  # noqa: E731
        hardware = on_cpu.replace(compile="auto")
        fit(
            learner,
            data=tiny_data,
            recipe=recipe,
            execution=Execution.on(hardware, checkpoints=Checkpoints(tmp_path)),
            until=stop,
        )
        return model

    calls: list[str] = []
    monkeypatch.setattr(Tapped, "compile", lambda self: calls.append("compiled"))
    monkeypatch.setattr("tutelage.training.compiling.PAYS_AFTER", 0.0)
    train(3)
    assert calls == []
    train(6)
    assert calls == ["compiled"]
    monkeypatch.setattr("tutelage.training.compiling.PAYS_AFTER", 1e9)
    train(8)
    assert calls == ["compiled"] * 2  # at the first step after resume


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_compiled_method_trains_to_the_same_weights(
    method: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any
) -> None:
    torch.compiler.reset()

    def train(hardware: Hardware) -> dict[str, torch.Tensor]:
        recipe = Recipe(epochs=2, batch_size=24, lr=0.01, momentum=0.0, nesterov=False)
        student, teachers = (lambda: tiny_model(2)), [tiny_model(1, width=6)]
        state: dict[str, torch.Tensor] = state_of(
            find(method)(Run(tiny_data, student, teachers, recipe=recipe, hardware=hardware, seed=2))
        )
        return state

    plain, compiled = train(on_cpu), train(on_cpu.replace(compile=True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
