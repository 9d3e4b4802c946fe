"""The network that ``distill`` and ``train`` return, and networks that cannot be trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.runs.calls import SHORT, Net, pixels
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.runs import open_model
from tutelage.terms import CrossEntropy


def test_a_model_given_to_a_learner_is_not_wrapped_twice(tiny_data: Data, tiny_model: Net) -> None:
    model = tiny_model()
    names = set(copy.deepcopy(model.module).state_dict())
    tutelage.fit(
        tutelage.Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=tutelage.Recipe(epochs=1)
    )
    assert set(model.module.state_dict()) == names


class Stats(nn.Module):
    """Without batch statistics a single image is answered as in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


def test_the_network_is_returned_in_eval_mode(
    tiny_data: Data, tiny_npz: str, trained_model: Net, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    results = {
        "a module": tutelage.train(Stats(), tiny_data, out=tmp_path / "run", **SHORT),
        "read back": tutelage.train(Stats(), tiny_data, out=tmp_path / "run", **SHORT),
        "a name": tutelage.train("resnet8x0.25", tiny_npz, **SHORT),
        "a function": tutelage.train(Stats, tiny_data, **SHORT),
        "a Tapped": tutelage.train(Tapped(Stats()), tiny_data, method="dml", **SHORT),
        "branches": tutelage.train("resnet8x0.25", tiny_data, method="one", **SHORT),
        "distilled": tutelage.distill(trained_model(width=6), Stats(), tiny_data, **SHORT),
        "a generator": tutelage.train("dcganx0.1", tiny_data, method="akdg", settings={"weight": 0}, **SHORT),
    }
    for form, result in results.items():
        training = [name for name, module in result.model.named_modules() if module.training]
        assert training == [], form
    before = state_of(results["a module"].model)
    x = pixels(tiny_data)
    one_by_one = torch.cat([results["a module"].model(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(one_by_one, results["a module"].model(x))
    assert changed(before, state_of(results["a module"].model)) == set()


def test_networks_are_in_eval_mode_after_a_fit_and_when_they_are_opened(
    finished_run: Path, tiny_data: Data, tiny_model: Net
) -> None:
    model = tiny_model()
    learner = tutelage.Learner(model, None, {"ce": CrossEntropy()})
    tutelage.fit(learner, data=tiny_data, recipe=tutelage.Recipe(epochs=1))
    assert not any(module.training for module in model.modules())
    assert not any(module.training for module in open_model(str(finished_run), tiny_data).modules())


def test_a_cohort_of_a_module_that_cannot_be_reinitialised_is_refused(
    tiny_data: Data, refused: Callable[..., Any]
) -> None:
    from torch.nn.utils.parametrizations import weight_norm

    network = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, 4)))
    with refused("no reset_parameters() reinitialises", "give a function"):
        tutelage.train(network, tiny_data, method="dml", **SHORT)
    tutelage.train(network, tiny_data, **SHORT)  # one network needs no copy


def test_a_users_module_is_reinitialised_for_a_cohort(
    tiny_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.runs.models import student_factory

    (tmp_path / "one_net.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    monkeypatch.chdir(tmp_path)
    make = student_factory("one_net:net", tiny_data)
    first, second = make(), make()
    assert not torch.equal(first.module.get_parameter("1.weight"), second.module.get_parameter("1.weight"))


def test_the_old_weight_norm_can_be_trained_alone(tiny_data: Data) -> None:
    with pytest.warns(FutureWarning):
        network = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 4)))
    assert tutelage.train(network, tiny_data, **SHORT).model.module is network


@pytest.mark.filterwarnings("ignore:the teacher given")  # it knows nothing, and is not to
@pytest.mark.parametrize("method", ["hinton", "plain"])
def test_modules_shared_with_the_teacher_are_refused(method: str, tiny_data: Data, refused: Callable[..., Any]) -> None:
    stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))
    teacher = nn.Sequential(stem, nn.Linear(16, 4))
    pieces = ("the student and its teacher", "in common (0.1.weight, 0.1.bias, 0.2.weight and 4 more)", "copy.deepcopy")
    for student in (nn.Sequential(stem, nn.Linear(16, 4)), lambda: nn.Sequential(stem, nn.Linear(16, 4))):
        with refused(*pieces):
            tutelage.distill(teacher, student, tiny_data, method=method, **SHORT)
    assert all(parameter.requires_grad for parameter in stem.parameters())


def test_modules_shared_with_a_frozen_teacher_are_refused_in_a_fit_too(
    tiny_data: Data, refused: Callable[..., Any]
) -> None:
    stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    student, teacher = (Tapped(nn.Sequential(stem, nn.Linear(16, 4))) for _ in range(2))
    source, terms = tutelage.Frozen(teacher), {"kd": tutelage.SoftTargets()}
    recipe = tutelage.Recipe(epochs=1, batch_size=16)
    with refused("learner 'student' and its teacher", "0.1.weight, 0.1.bias"):
        tutelage.fit(tutelage.Learner(student, source, terms), data=tiny_data, recipe=recipe)
    only_head = tutelage.Learner(student, source, terms, trainable=lambda name: name.startswith("1."))
    tutelage.fit(only_head, data=tiny_data, recipe=recipe)  # said on purpose


def test_lazy_students_are_initialised_from_the_seed(
    tiny_data: Data, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))

    states = []
    for student in (lazy, lazy(), Tapped(lazy(), *tiny_data.mean_std)):
        torch.rand(3)
        states.append(state_of(tutelage.train(student, tiny_data, **SHORT).model))
    assert changed(states[0], states[1]) == changed(states[0], states[2]) == set()
    out = tmp_path / "run"
    first = tutelage.train(lazy(), tiny_data, out=out, **SHORT)
    rerun = tutelage.train(lazy(), tiny_data, out=out, **SHORT)
    assert changed(state_of(first.model), state_of(rerun.model)) == set()


class WithExtraState(nn.Sequential):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def with_extra_state() -> nn.Module:
    return WithExtraState(nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize("student", [with_extra_state(), with_extra_state])
def test_a_state_that_is_not_a_tensor_is_refused_before_training(
    student: Any, tiny_data: Data, trained_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("'_extra_state' of its state is a dict"):
        tutelage.train(student, tiny_data, **SHORT)
    with refused("'_extra_state' of its state is a dict"):
        tutelage.distill(with_extra_state(), Stats(), tiny_data, **SHORT)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_another_dtype_are_refused_by_its_name(
    dtype: torch.dtype, precision: str, tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    options = {**SHORT, "precision": precision}
    with refused(str(dtype).removeprefix("torch."), ".float()"):
        tutelage.train(Stats().to(dtype), tiny_data, **options)
    with refused("the teacher", str(dtype).removeprefix("torch."), "network.float()"):
        tutelage.distill(Stats().to(dtype), tiny_model().module, tiny_data, **options)


OWN_ATTRIBUTES: dict[str, Any] = {
    "surgery": "none",
    "latent": 16,
    "roles": ["admin"],
    "passes": "two",
    "dropped": None,
    "taps": 3,
    "mean": 0.5,
    "trains": "generator",
}


@pytest.mark.parametrize("method", ["plain", "gccs", "abstention", "final_bn"])
def test_attributes_of_the_network_do_not_collide_with_those_of_the_package(
    method: str, tiny_data: Data, trained_model: Net, tmp_path: Path
) -> None:
    student = Stats()
    for name, value in OWN_ATTRIBUTES.items():
        setattr(student, name, value)
    result = tutelage.distill(
        trained_model(), student, tiny_data, method=method, out=tmp_path, **SHORT | {"batch_size": 24}
    )
    assert result.model.module is student
    assert {name: getattr(student, name) for name in OWN_ATTRIBUTES} == OWN_ATTRIBUTES
    rerun = Stats()
    for name, value in OWN_ATTRIBUTES.items():
        setattr(rerun, name, value)
    second_result = tutelage.distill(
        trained_model(), rerun, tiny_data, method=method, out=tmp_path, **SHORT | {"batch_size": 24}
    )
    assert torch.equal(second_result.model(pixels(tiny_data)), result.model(pixels(tiny_data)))
