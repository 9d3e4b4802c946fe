"""``distill`` and ``train`` called from Python: students, teachers and data as objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.runs.calls import SHORT, Net, pixels, share_correct
from tutelage.data import Data
from tutelage.errors import TutelageWarning
from tutelage.models.tapped import Tapped


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- the student


def test_a_module_is_trained_in_place_and_takes_raw_pixels(
    tiny_data: Data, tiny_model: Net, trained_model: Net, changed: Any
) -> None:
    student, teacher = tiny_model().module, trained_model(width=6).module
    before, teaching = frozen_copy(student), frozen_copy(teacher)
    result = tutelage.distill(teacher, student, tiny_data, **SHORT | {"epochs": 20, "lr": 0.2})
    assert result.model.module is student
    assert changed(before, student.state_dict())
    assert changed(teaching, teacher.state_dict()) == set()
    assert result.metrics["test"]["accuracy"] == pytest.approx(share_correct(result.model, tiny_data))
    assert result.metrics["test"]["accuracy"] > 0.7  # the normalisation is part of the model
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in tiny_data.mean_std)
    torch.testing.assert_close(student((pixels(tiny_data) - mean) / std), result.model(pixels(tiny_data)))
    assert len(result.history) == 20
    assert result.config.method == "hinton"
    assert result.folder is None


def test_a_wrapped_student_keeps_its_own_normalisation(tiny_data: Data, tiny_model: Net) -> None:
    student = Tapped(tiny_model().module, [0.25], [2.0])
    result = tutelage.train(student, tiny_data, **SHORT)
    assert result.model is student
    assert (student.mean.item(), student.std.item()) == (0.25, 2.0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_factory_makes_the_student_from_the_seed(wrapped: bool, tiny_data: Data, changed: Any, state_of: Any) -> None:
    students: list[nn.Module] = []

    def factory() -> nn.Module:
        students.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
        return Tapped(students[-1], [0.5], [0.5]) if wrapped else students[-1]

    states = []
    for seed in (0, 0, 1):
        torch.rand(5)
        result = tutelage.train(factory, tiny_data, seed=seed, **SHORT)
        assert result.model.module is students[-1]
        states.append(state_of(result.model))
    assert len(students) == 3
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])
    assert (result.model.mean.item() == 0.5) == wrapped


def test_dml_with_a_single_module_initialises_its_peers_again(tiny_data: Data, tiny_model: Net, changed: Any) -> None:
    """Each net begins with other weights, the first with the ones it was given."""
    initial_states: list[dict[str, Tensor]] = []

    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_model().module

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not hasattr(self, "seen"):
                self.seen = True
                initial_states.append({n: v.clone() for n, v in self.net.named_parameters()})
            return self.net(x)  # type: ignore[no-any-return]

    student = Noted()
    before = {n: v.clone() for n, v in student.net.named_parameters()}
    result = tutelage.train(student, tiny_data, method="dml", settings={"peers": 3}, **SHORT)
    assert result.model.module is student
    assert len(initial_states) == 3
    assert changed(before, initial_states[0]) == set()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {"conv1.weight", "conv2.weight", "fc.weight"} <= changed(initial_states[a], initial_states[b])


def test_a_named_student(tiny_data: Data, trained_model: Net) -> None:
    result = tutelage.distill(trained_model().module, "resnet8x0.25", tiny_data, **SHORT)
    assert type(result.model.module).__name__ == "ResNet"


# --- the teacher


@pytest.mark.parametrize("method", ["hinton", "at", "fitnet", "dml", "plain"])
def test_no_method_changes_the_teacher(
    method: str, tiny_data: Data, tiny_model: Net, trained_model: Net, state_of: Any, changed: Any
) -> None:
    teacher = trained_model(width=6)
    before = state_of(teacher)
    tutelage.distill(teacher.module.train(), tiny_model().module, tiny_data, method=method, **SHORT)
    assert changed(before, state_of(teacher)) == set()


def test_a_teacher_at_chance_level_gives_a_warning(tiny_data: Data, tiny_model: Net) -> None:
    teacher = tiny_model(seed=1).module
    nn.init.zeros_(teacher.get_parameter("fc.weight"))
    with pytest.warns(TutelageWarning, match=r"accuracy 25\.0% on 16 samples of tiny: chance level for 4") as w:
        tutelage.distill(teacher, tiny_model().module, tiny_data, **SHORT)
    assert len(w) == 1
    assert "check its weights, its normalisation" in str(w[0].message)


@pytest.mark.parametrize("classes", [3, 5])
def test_a_teacher_of_other_classes_is_refused(
    classes: int, tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("teacher", f"(4, {classes})", "4 classes of tiny", "a classifier with 4 outputs"):
        tutelage.distill(tiny_model(classes=classes).module, tiny_model().module, tiny_data, **SHORT)


def test_a_teacher_of_other_images_is_refused(tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]) -> None:
    with refused("teacher", "TinyNet", "cannot teach on images of shape (1, 8, 8)", "3 channels"):
        tutelage.distill(tiny_model(channels=3).module, tiny_model().module, tiny_data, **SHORT)


def test_a_student_of_other_classes_is_refused(
    tiny_data: Data, tiny_model: Net, trained_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("'student'", "(4, 3)", "4 classes of tiny"):
        tutelage.distill(trained_model().module, tiny_model(classes=3).module, tiny_data, **SHORT)


def test_several_teachers_are_averaged_as_probabilities(tiny_data: Data, tiny_model: Net, trained_model: Net) -> None:
    teachers = [trained_model(seed=1), trained_model(seed=2, width=6), trained_model(seed=3)]
    result = tutelage.distill([t.module for t in teachers], tiny_model().module, tiny_data, **SHORT)
    with torch.no_grad():
        probabilities = [teacher.eval()(pixels(tiny_data)).softmax(1) for teacher in teachers]
        mean = torch.stack(probabilities).mean(0)
        log_probabilities = result.model.eval()(pixels(tiny_data)).log_softmax(1)
    test = result.metrics["test"]
    assert test["teacher_accuracy"] == pytest.approx((mean.argmax(1) == tiny_data.test.labels).float().mean().item())
    assert test["kl_to_teacher"] == pytest.approx(
        (mean * (mean.log() - log_probabilities)).sum(1).mean().item(), rel=1e-4
    )


def test_a_method_of_layers_takes_one_teacher(
    tiny_data: Data, tiny_model: Net, trained_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("one teacher", "got 2"):
        tutelage.distill([trained_model(), trained_model(2)], tiny_model().module, tiny_data, method="at", **SHORT)


def test_hinton_needs_a_teacher(tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]) -> None:
    with refused("needs a teacher"):
        tutelage.train(tiny_model().module, tiny_data, method="hinton", **SHORT)


# --- a weight of zero


def test_hinton_with_alpha_0_equals_plain_bit_for_bit(
    tiny_data: Data, tiny_model: Net, trained_model: Net, state_of: Any, changed: Any
) -> None:
    under = tutelage.distill(
        trained_model(width=6), tiny_model(dropout=0.3).module, tiny_data, settings={"alpha": 0}, **SHORT
    )
    single_teacher = tutelage.train(tiny_model(dropout=0.3).module, tiny_data, **SHORT)
    assert changed(state_of(under.model), state_of(single_teacher.model)) == set()
    half = tutelage.distill(
        trained_model(width=6), tiny_model(dropout=0.3).module, tiny_data, settings={"alpha": 0.5}, **SHORT
    )
    assert changed(state_of(half.model), state_of(single_teacher.model))


# --- the data


@pytest.mark.parametrize("field", [{"noise": "0.1"}, {"image_size": 16}, {"augment": False}])
def test_conditions_of_data_by_name_are_refused_for_data_itself(
    field: dict[str, Any], tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("opened by name", "apply them to the Data first"):
        tutelage.train(tiny_model().module, tiny_data, **field)


def test_a_validation_split_is_held_out_if_there_is_none(tiny_data: Data, tiny_model: Net) -> None:
    data = replace(tiny_data, validation=None)
    result = tutelage.train(tiny_model().module, data, validation=0.25, **SHORT)
    assert result.metrics["data"]["samples"] == {"train": 36, "validation": 12, "test": 16}
    result = tutelage.train(tiny_model().module, tiny_data, validation=0.25, **SHORT)
    assert result.metrics["data"]["samples"] == {"train": 48, "validation": 16, "test": 16}


def test_a_class_without_samples_is_refused(tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]) -> None:
    train = tiny_data.train.subset(torch.nonzero(tiny_data.train.labels != 2).flatten())
    with refused("'c'", "no training sample", "add samples or remove the class"):
        tutelage.train(tiny_model().module, replace(tiny_data, train=train), **SHORT)
