"""``distill`` and ``train`` called from Python, with objects in place of names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tutelage
from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs import execute, open_model
from tutelage.terms import CrossEntropy

Net = Callable[..., Tapped]
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.1, "device": "cpu"}


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


def right(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float((model.eval()(pixels(data)).argmax(1) == data.test.labels).float().mean())


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
    assert result.metrics["test"]["accuracy"] == pytest.approx(right(result.model, tiny_data))
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
    with pytest.warns(TutelageWarning, match=r"25\.0% of 16 samples of tiny correctly: chance level for 4") as w:
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


# --- what the weights of nothing are


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


# --- folders and names


def test_repeating_a_stopped_call_resumes_it(
    tiny_data: Data, tiny_model: Net, trained_model: Net, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    reference = tutelage.distill(trained_model(), tiny_model().module, tiny_data, out=tmp_path / "whole", **SHORT)

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(trained_model(), tiny_model().module, tiny_data, out=tmp_path / "run", report=stop, **SHORT)
    rerun = tutelage.distill(trained_model(), tiny_model().module, tiny_data, out=tmp_path / "run", **SHORT)
    assert changed(state_of(reference.model), state_of(rerun.model)) == set()
    student = tiny_model().module
    second_result = tutelage.distill(trained_model(), student, tiny_data, out=str(tmp_path / "run"), **SHORT)
    assert second_result.model.module is student
    assert changed(state_of(reference.model), state_of(second_result.model)) == set()
    assert second_result.metrics == rerun.metrics


def test_a_run_of_python_objects_records_them_and_differs_from_others(
    tiny_data: Data, tiny_model: Net, trained_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    import yaml

    tutelage.distill(trained_model(), tiny_model().module, tiny_data, out=tmp_path / "run", **SHORT)
    written_config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written_config["data"] == "given:tiny"
    assert written_config["student"].startswith("given:")
    assert "TinyNet" in written_config["student"]
    assert written_config["teacher"][0].startswith("given:")
    with refused("different run", "teacher"):
        tutelage.distill(trained_model(seed=2), tiny_model().module, tiny_data, out=tmp_path / "run", **SHORT)
    with refused("different run", "student"):
        tutelage.distill(trained_model(), tiny_model(width=6).module, tiny_data, out=tmp_path / "run", **SHORT)


@pytest.fixture
def finished_run(tiny_npz: str, tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    execute(Config(data=tiny_npz, student="resnet8x0.5", **SHORT | {"epochs": 10, "lr": 0.2}), folder)
    return folder


def test_a_trained_network_is_named_by_folder_or_by_file(finished_run: Path, tiny_data: Data, tiny_npz: str) -> None:
    by_folder = open_model(str(finished_run), tiny_data)
    by_file = open_model(f"resnet8x0.5@{finished_run / 'student.safetensors'}", tiny_data)
    x = pixels(tiny_data)
    assert torch.equal(by_folder.eval()(x), by_file.eval()(x))
    assert right(by_folder, tiny_data) > 0.6
    results = [
        tutelage.distill(teacher, "resnet8x0.25", tiny_npz, **SHORT)
        for teacher in (str(finished_run), f"resnet8x0.5@{finished_run / 'student.safetensors'}", by_folder)
    ]
    assert results[0].metrics["test"] == results[1].metrics["test"] == results[2].metrics["test"]


def test_a_network_keeps_the_normalisation_it_was_trained_with(
    finished_run: Path, tiny_data: Data, tmp_path: Path
) -> None:
    brighter = replace(tiny_data, train=replace(tiny_data.train, inputs=tiny_data.train.inputs // 2))
    opened_model = open_model(str(finished_run), brighter)
    assert opened_model.mean.item() == pytest.approx(tiny_data.mean_std[0][0])
    # a file from elsewhere says nothing of itself: the data's own is the best guess
    save_file(opened_model.module.state_dict(), tmp_path / "bare.safetensors")
    bare_model = open_model(f"resnet8x0.5@{tmp_path / 'bare.safetensors'}", brighter)
    assert bare_model.mean.item() == pytest.approx(brighter.mean_std[0][0])


def test_invalid_names_of_trained_networks(
    finished_run: Path, tiny_data: Data, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    (tmp_path / "empty").mkdir()
    with refused(f"{tmp_path / 'empty'} contains no student.safetensors", "finished run"):
        open_model(str(tmp_path / "empty"), tiny_data)
    with refused("no trained network 'resnet8'", "MODEL@WEIGHTS"):
        open_model("resnet8", tiny_data)
    with refused("nowhere.safetensors", "No such file", "check the path"):
        open_model(f"resnet8@{tmp_path / 'nowhere.safetensors'}", tiny_data)
    with refused("student.safetensors", "in the file", "in the model"):
        open_model(f"resnet8x0.25@{finished_run / 'student.safetensors'}", tiny_data)
    three = replace(tiny_data, classes=("a", "b", "c", "d", "e"))
    with refused("was trained for 4 classes and tiny has 5"):
        open_model(str(finished_run), three)


def test_the_folder_of_a_student_object_requires_the_model_name(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    tutelage.train(tiny_model().module, tiny_data, out=tmp_path / "run", **SHORT)
    with refused("does not record its network", f"MODEL@{tmp_path / 'run' / 'student.safetensors'}"):
        open_model(str(tmp_path / "run"), tiny_data)


def test_different_class_names_give_a_warning(tiny_data: Data, tmp_path: Path) -> None:
    module = make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module
    save_weights(tmp_path / "w.safetensors", module, {"classes": ["a", "c", "b", "d"]})
    with pytest.warns(TutelageWarning, match="'c' where tiny has 'b'.*same order"):
        open_model(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", tiny_data)


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        ({"epochs": 0}, ("epochs", "greater than or equal to 1", "0")),
        ({"batch": 16}, ("'batch'", "did you mean 'batch_size'")),
        ({"method": "hintn"}, ("'hintn'", "did you mean 'hinton'", "plain")),
        ({"optimizer": "SDG"}, ("'SDG'", "SGD")),
        ({"device": "cuda:99"}, ("'cuda:99'", "cannot be used here", "auto")),
        ({"device": "gpu"}, ("'gpu'", "cannot be used here")),
        ({"settings": {"temprature": 2}}, ("plain", "'temprature'")),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"compile": "maybe"}, ("compile", "maybe", "true, false, auto, reduce-overhead or max-autotune")),
        ({"seed": -1}, ("seed", "-1")),
    ],
)
def test_invalid_fields(
    fields: dict[str, Any], pieces: tuple[str, ...], tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused(*pieces):
        tutelage.train(tiny_model().module, tiny_data, **{"epochs": 1, **fields})


# --- the command recorded in a result


COMMANDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another model": {"student": "wrn-10-1"},
    "a cohort": {"method": "dml", "settings": {"peers": 3, "update": "synchronous"}},
    "hinton": {"teacher": ("runs/a teacher",), "method": "hinton", "settings": {"alpha": 0.5}},
    "two teachers": {"teacher": ("one", "resnet8@two.safetensors"), "method": "hinton"},
    "plain beside a teacher": {"teacher": ("one",), "method": "plain"},
    "fields": {
        "data": "npz:my data.npz",
        "noise": "uniform:0.25",
        "augment": False,
        "compile": True,
        "channels_last": True,
        "milestones": (0.25, 0.5),
        "clip": 1.5,
        "optimizer": "AdamW",
        "lr": 1e-3,
        "seed": 7,
        "validation": 0.0,
        "nesterov": False,
        "precision": "bfloat16",
        "device": "cpu",
        "weight_decay": 0.0,
    },
    "compiled where it pays": {"compile": "auto"},
    "resolved": {"device": "cpu", "precision": "float32", "channels_last": False},
}


@pytest.mark.parametrize("fields", COMMANDS.values(), ids=list(COMMANDS))
def test_the_command_of_a_run_makes_the_same_configuration(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    from tutelage.cli import main
    from tutelage.runs.commands import as_command

    config = Config(**fields)
    second_result: list[Config] = []

    def instead(actual_config: Config, *_: Any, **__: Any) -> None:
        second_result.append(actual_config)
        raise TutelageError("enough")

    monkeypatch.setattr("tutelage.runs.execute", instead)
    monkeypatch.setattr("sys.argv", shlex.split(as_command(config)))
    with pytest.raises(SystemExit):
        main()
    assert second_result == [config]


def test_a_python_call_makes_the_same_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command line prints can be pasted."""
    import tutelage.api
    from tutelage.runs.commands import as_python

    second_result: list[Config] = []

    def instead(
        teachers: Any, student: Any, data: Any, out: Any, report: Any, track: Any, fields: dict[str, Any]
    ) -> None:
        assert out == str(tmp_path)
        second_result.append(Config(teacher=tuple(teachers), student=student, data=data, **fields))

    monkeypatch.setattr(tutelage.api, "_execute", instead)
    for name, fields in COMMANDS.items():
        config = Config(**fields)
        eval(as_python(config, tmp_path), {"tutelage": tutelage})
        assert second_result.pop() == config, name


def test_a_model_given_to_a_learner_is_not_wrapped_twice(tiny_data: Data, tiny_model: Net) -> None:
    model = tiny_model()
    names = set(copy.deepcopy(model.module).state_dict())
    tutelage.fit(
        tutelage.Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=tutelage.Recipe(epochs=1)
    )
    assert set(model.module.state_dict()) == names


# --- the returned network, and networks that cannot be trained


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


# --- paths


def test_paths_are_used_unchanged_and_expanded_from_the_home_folder(
    finished_run: Path, tiny_data: Data, tiny_npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    npz = Path(tiny_npz.removeprefix("npz:"))
    results = [
        tutelage.distill(teacher, "resnet8x0.25", data, out=out, teacher_cache=cache, **SHORT)
        for teacher, data, out, cache in (
            (str(finished_run), tiny_npz, tmp_path / "a", str(tmp_path / "cache")),
            (finished_run, npz, "~/b", Path("~/cache")),
            ([Path("~/finished")], Path("~/tiny.npz"), Path("~/c"), "~/cache"),
        )
    ]
    assert results[0].metrics["test"] == results[1].metrics["test"] == results[2].metrics["test"]
    assert {"a", "b", "c", "cache"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "~").exists()
    assert results[2].folder == tmp_path / "c"
