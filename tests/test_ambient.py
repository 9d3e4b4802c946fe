"""Torch settings of the caller do not affect a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.evaluation import cost_of, memorisation
from tutelage.evaluation.predict import predict
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen, TeacherCache
from tutelage.tasks import evaluate
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]


@contextmanager
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def meta() -> Any:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_default_device": meta,
    "with torch.device": lambda: torch.device("meta"),
    "float64": float64,
    "deterministic": deterministic,
}


def short(folder: Path) -> tutelage.Result:
    fields: dict[str, Any] = {"epochs": 1, "per_class": 6, "batch_size": 20, "device": "cpu", "precision": "float32"}
    return tutelage.train("resnet8x0.5", "digits", out=folder, **fields)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tutelage.Result:
    return short(tmp_path_factory.mktemp("ordinary"))


def settings() -> tuple[Any, ...]:
    enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return *enabled, torch.get_default_dtype(), torch.get_default_device()


@pytest.mark.parametrize("name", AMBIENT)
def test_a_run_is_the_same_in_every_bit(
    name: str, ordinary: tutelage.Result, tmp_path: Path, changed: Callable[..., set[str]]
) -> None:
    with AMBIENT[name]():
        before = settings()
        result = short(tmp_path)
        assert settings() == before
    assert changed(result.model.module.state_dict(), ordinary.model.module.state_dict()) == set()
    assert result.metrics["test"] == ordinary.metrics["test"]


@pytest.mark.parametrize("name", AMBIENT)
def test_a_fit_and_its_evaluation_are_the_same_in_every_bit(
    name: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, tmp_path: Path, changed: Callable[..., set[str]]
) -> None:
    def train(student: Tapped, source: Frozen) -> tuple[dict[str, Tensor], list[Any]]:
        terms = {"ce": CrossEntropy(), "kd": SoftTargets()}
        fit(
            Learner(student, source, terms),
            data=tiny_data,
            recipe=Recipe(epochs=1, batch_size=16),
            execution=Execution.on(on_cpu),
        )
        numbers = [
            evaluate(student, tiny_data),
            memorisation(student, tiny_data),
            cost_of(student, tiny_data.modality.example(1, tiny_data.input_shape))["flops"],
        ]
        return student.state_dict(), [*numbers, predict(student, tiny_data.test, device="cpu").tolist()]

    def networks(folder: str) -> tuple[Tapped, Frozen]:
        return tiny_model(), Frozen(tiny_model(1), cache=TeacherCache(tmp_path / folder, tiny_data))

    expected_state, expected = train(*networks("a"))
    own_networks = networks("b")  # the caller's own networks are made as the caller makes them
    with AMBIENT[name]():
        state, numbers = train(*own_networks)
    assert changed(state, expected_state) == set()
    assert numbers == expected


def test_data_are_opened_on_the_processor() -> None:
    with torch.device("meta"):
        data = open_data("digits")
    assert data.train.labels.device.type == "cpu"


def test_a_network_made_in_inference_mode_is_refused_in_one_line(
    tiny_data: Data, on_cpu: Hardware, refused: Callable[..., Any]
) -> None:
    with torch.inference_mode():
        network = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
        with refused("learner 'student'", "inference_mode", "outside"):
            fit(Learner(network, None, {"ce": CrossEntropy()}), data=tiny_data, execution=Execution.on(on_cpu))
