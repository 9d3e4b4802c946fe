"""What is reported about a teacher before training: its labels, normalisation, accuracy and cost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import tutelage
from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.models.zoo import build
from tutelage.runs import execute
from tutelage.runs.folder import WEIGHTS
from tutelage.runs.locate import split_model_spec
from tutelage.runs.models import open_trained
from tutelage.runs.students import StudentStart, warn_if_costlier
from tutelage.runs.teacher_labels import label_differences
from tutelage.tasks import find_task

Net = Callable[..., Tapped]
SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}


@pytest.fixture
def recorded_teacher(tmp_path: Path) -> Callable[..., str]:
    """A run's folder as far as its labels are recorded."""

    def record(name: str = "teacher", **fields: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": "digits", "seed": 0, **fields}))
        return str(folder)

    return record


NOISY = {"noise": "0.4"}

DENIED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "clean labels": ({}, NOISY, "noise none (here 0.4)"),
    "another rate": ({"noise": "0.2"}, NOISY, "noise 0.2 (here 0.4)"),
    "another kind": ({"noise": "pair:0.4"}, NOISY, "noise pair:0.4 (here 0.4)"),
    "another seed": ({**NOISY, "seed": 1}, NOISY, "seed 1 (here 0)"),
    "noise of fewer samples": ({**NOISY, "per_class": 20}, NOISY, "per_class 20 (here none)"),
    "labels that the student lacks": ({}, {"noise": "missing:0.5"}, "noise none"),
    "all samples": ({}, {"per_class": 20}, "per_class none (here 20)"),
    "more samples": ({"per_class": 50}, {"per_class": 20}, "per_class 50 (here 20)"),
    "other samples": ({"per_class": 20, "seed": 1}, {"per_class": 20}, "seed 1 (here 0)"),
    "balanced classes": ({}, {"imbalance": "longtail:0.1"}, "imbalance none (here longtail:0.1)"),
}


@pytest.mark.parametrize(("teacher_fields", "student_fields", "message"), DENIED.values(), ids=DENIED)
def test_a_teacher_that_may_have_seen_more_correct_labels_is_reported(
    teacher_fields: dict[str, Any], student_fields: dict[str, Any], message: str, recorded_teacher: Callable[..., str]
) -> None:
    text = label_differences(recorded_teacher(**teacher_fields), Config(**student_fields))
    assert text is not None
    assert message in text
    assert "\n" not in text


FAIR: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same": ({**NOISY, "per_class": 20}, {**NOISY, "per_class": 20}),
    "the same noise, written otherwise": ({"noise": "symmetric:0.40"}, NOISY),
    "no noise, two spellings": ({"noise": "0"}, {}),
    "a noisy teacher of a clean student": (NOISY, {}),
    "fewer samples of the same seed": ({"per_class": 10}, {"per_class": 20}),
    "a rarer teacher of a balanced student": ({"imbalance": "longtail:0.1", "per_class": None}, {}),
    "another seed without noise": ({"seed": 3}, {}),
    "other data": ({"data": "idx:mnist"}, NOISY),
    "human labels, which are not drawn": ({"noise": "human:f.npz:worst", "seed": 1}, {"noise": "human:f.npz:worst"}),
    "a damaged record": ({"noise": [1, 2]}, NOISY),
}


@pytest.mark.parametrize(("teacher_fields", "student_fields"), FAIR.values(), ids=FAIR)
def test_a_teacher_that_has_seen_no_more_correct_labels_is_not_reported(
    teacher_fields: dict[str, Any], student_fields: dict[str, Any], recorded_teacher: Callable[..., str]
) -> None:
    assert label_differences(recorded_teacher(**teacher_fields), Config(**student_fields)) is None


def test_labels_are_compared_only_for_weights_in_the_folder_of_a_run(
    recorded_teacher: Callable[..., str], tmp_path: Path
) -> None:
    folder = Path(recorded_teacher())
    for name in (WEIGHTS, "other.safetensors"):
        (folder / name).touch()
    assert label_differences(f"resnet8@{folder / WEIGHTS}", Config(**NOISY)) is not None
    assert label_differences(f"resnet8@{folder / 'other.safetensors'}", Config(**NOISY)) is None
    assert label_differences("timm/resnet18", Config(**NOISY)) is None
    assert label_differences(str(tmp_path / "absent"), Config(**NOISY)) is None


def test_two_spellings_of_one_path_are_the_same_data(
    recorded_teacher: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = recorded_teacher(data="npz:set.npz")
    assert label_differences(teacher, Config(data=f"npz:{tmp_path}/./set.npz", **NOISY)) is not None


def test_a_call_from_python_warns_and_a_run_by_itself_does_not(tmp_path: Path, tiny_npz: str) -> None:
    student: dict[str, Any] = {"data": tiny_npz, "student": "resnet8x0.25", **SHORT}
    execute(Config(**student | {"epochs": 10, "lr": 0.2}), tmp_path / "t")
    with pytest.warns(TutelageWarning, match="may have seen labels that this student does not see") as records:
        tutelage.distill(str(tmp_path / "t"), "resnet8x0.25", tiny_npz, noise="0.3", **SHORT)
    assert len([w for w in records if "does not see" in str(w.message)]) == 1
    config = Config(**student, teacher=(str(tmp_path / "t"),), method="hinton", noise="0.3")
    execute(config)  # as a study does, which may have been asked for teachers of clean labels


def test_a_study_warns_once_of_a_trained_teacher_and_not_of_teachers_it_trains(
    recorded_teacher: Callable[..., str],
) -> None:
    from tutelage.studies.inspection import _warn_of_other_labels
    from tutelage.studies.study import Study

    grid: dict[str, Any] = {"noise": [0, 0.2, 0.4], "methods": "hinton", "seeds": 2}
    with pytest.warns(TutelageWarning, match="does not see") as records:
        _warn_of_other_labels(Study(teachers=recorded_teacher(), **grid))
    assert len(records) == 1
    _warn_of_other_labels(Study(teachers="resnet8", teacher_labels="clean", **grid))


# --- names of weights


def test_model_and_weights_are_split_where_the_file_is(tmp_path: Path) -> None:
    file = tmp_path / "u@h" / "w@2.safetensors"
    file.parent.mkdir()
    file.touch()
    assert split_model_spec(f"resnet8@{file}") == ("resnet8", file)
    assert split_model_spec(f"timm/some@rev@{file}") == ("timm/some@rev", file)
    assert split_model_spec("resnet8@u@h/absent.pt") == ("resnet8", Path("u@h/absent.pt"))
    assert split_model_spec("resnet8") is None


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_model_spec("resnet8@~/w.pt") == ("resnet8", tmp_path / "w.pt")


# --- normalisation


def test_the_normalisation_of_weights_is_recorded_given_or_of_the_data(tiny_data: Data, tmp_path: Path) -> None:
    from tutelage.models.zoo import build

    module = build("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8))
    save_weights(tmp_path / "own.safetensors", module, {"mean": [0.25], "std": [2.0]})
    torch.save(module.state_dict(), tmp_path / "none.pt")
    name = f"resnet8x0.25@{tmp_path}/"
    recorded_statistics = open_trained(f"{name}own.safetensors", tiny_data, ((0.1,), (0.2,)))
    assert (
        recorded_statistics.model.mean.item(),
        recorded_statistics.model.std.item(),
        recorded_statistics.normalisation,
    ) == (0.25, 2.0, "recorded with the weights")
    given_statistics = open_trained(f"{name}none.pt", tiny_data, ((0.125,), (0.5,)))
    assert (given_statistics.model.mean.item(), given_statistics.model.std.item(), given_statistics.normalisation) == (
        0.125,
        0.5,
        "as given",
    )
    data_statistics = open_trained(f"{name}none.pt", tiny_data)
    assert data_statistics.model.mean.item() == pytest.approx(tiny_data.mean_std[0][0])
    assert data_statistics.normalisation == "those of tiny: the network records none"
    with pytest.raises(TutelageError, match="3 channels does not fit the 1 of tiny; give 1"):
        open_trained(f"{name}none.pt", tiny_data, ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)))


def test_a_given_normalisation_reaches_a_teacher_from_python(
    tiny_data: Data, tiny_model: Net, trained_model: Net
) -> None:
    teacher = trained_model()
    fields: dict[str, Any] = {
        "teacher_mean": teacher.mean.flatten().tolist(),
        "teacher_std": [1.25 * teacher.std.item()],
    }
    accuracies = []
    for network in (teacher.module, Tapped(teacher.module, *fields.values())):
        options = fields if network is teacher.module else {}
        result = tutelage.distill(network, tiny_model().module, tiny_data, **options, **SHORT)
        accuracies.append(result.metrics["test"]["teacher_accuracy"])
    assert accuracies[0] == accuracies[1]
    with pytest.raises(TutelageError, match="the weights record their own"):
        tutelage.distill(Tapped(teacher.module), tiny_model().module, tiny_data, **fields, **SHORT)
    with pytest.raises(TutelageError, match="there is no teacher"):
        tutelage.train(tiny_model().module, tiny_data, **fields, **SHORT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_mean": 0.5}, "go together"),
        ({"teacher_std": "0.5,0"}, "teacher_std.*greater than 0"),
        ({"teacher_mean": "a,b", "teacher_std": 1}, "teacher_mean.*'a'"),
        ({"teacher_mean": float("nan"), "teacher_std": 1}, "teacher_mean.*finite"),
    ],
)
def test_invalid_normalisations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TutelageError, match=message):
        Config(**fields)


def test_each_teacher_is_announced_before_training(tmp_path: Path, tiny_npz: str) -> None:
    execute(Config(data=tiny_npz, student="resnet8x0.25", lr=0.2, **SHORT | {"epochs": 10}), tmp_path / "t")
    torch.save(
        open_trained(str(tmp_path / "t"), tutelage.open_data(tiny_npz)).model.module.state_dict(), tmp_path / "w.pt"
    )
    names = (str(tmp_path / "t"), f"resnet8x0.25@{tmp_path / 'w.pt'}")
    lines: list[str] = []
    config = Config(data=tiny_npz, student="resnet8x0.25", teacher=names, method="hinton", **SHORT)
    execute(config, announce=lines.append, report=lambda record: lines.append("epoch"))
    first, second, student, *training_lines = lines
    accuracy = json.loads((tmp_path / "t" / "result.json").read_text())["test"]["accuracy"]
    assert first.startswith(f"teacher {names[0]}: images normalized with mean ")
    assert "(recorded with the weights); accuracy " in first
    assert first.endswith(f"its run recorded accuracy {accuracy:.1%} on the test split of {tiny_npz}")
    assert "the network records none); accuracy " in second
    assert "recorded " not in second
    assert student.startswith("student resnet8x0.25: images normalized with mean ")
    assert student.endswith(f"(those of {tiny_npz})")
    assert training_lines == ["epoch"]


@pytest.mark.parametrize("kind", ["bare", "file", "wrap_network", "stated"])
def test_the_announcement_is_a_warning_if_the_normalisation_is_assumed(
    kind: str, tiny_data: Data, tiny_model: Net, trained_model: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = trained_model()
    save_weights(tmp_path / "w.safetensors", build("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)), {})
    networks = {"bare": teacher.module, "wrap_network": teacher, "stated": teacher.module}
    fields: dict[str, Any] = {"teacher_mean": 0.25, "teacher_std": 0.5} if kind == "stated" else {}
    with caplog.at_level("INFO", "tutelage"), warnings.catch_warnings():
        warnings.simplefilter("ignore", TutelageWarning)  # of accuracy at chance level
        network = networks.get(kind, f"resnet8x0.25@{tmp_path / 'w.safetensors'}")
        tutelage.distill(network, tiny_model().module, tiny_data, **fields, **SHORT)
    record, student = (entry for entry in caplog.records if entry.name == "tutelage")
    assert student.getMessage().endswith("(those of tiny)")
    message = {
        "bare": "(those of tiny: the network records none); accuracy ",
        "file": "(those of tiny: the network records none); accuracy ",
        "wrap_network": "(its own); accuracy ",
        "stated": "mean 0.25 and std 0.5 (as given); accuracy ",
    }
    assert message[kind] in record.getMessage()
    assert record.levelname == ("WARNING" if kind in ("bare", "file") else "INFO")


# --- cost


def test_a_student_that_costs_more_than_its_teacher_gives_a_warning(tiny_data: Data) -> None:
    from tutelage.runs.models import make_student

    large = replace(
        tiny_data,
        **{
            part: replace(split, inputs=torch.zeros(len(split), 32, 32, 1, dtype=torch.uint8))
            for part, split in tiny_data.splits.items()
        },
    )

    def pair(data: Data, student: str, *teachers: str) -> None:
        networks = [make_student(teacher, data) for teacher in teachers]
        warn_if_costlier(make_student(student, data), networks, find_task("classification"), data, student)

    with pytest.warns(
        TutelageWarning, match=r"resnet14 costs \d+\.\d MFLOPs per image and its teacher \d+\.\d: choose"
    ):
        pair(large, "resnet14", "resnet8")
    pair(large, "resnet8", "resnet8")
    pair(large, "resnet8", "resnet14")
    pair(large, "resnet14", "resnet8", "resnet20")
    pair(large, "resnet14")
    pair(tiny_data, "resnet8x0.5", "resnet8x0.25")  # too small for its cost to matter


def test_a_student_with_more_parameters_than_its_teacher_gives_a_warning(tiny_data: Data) -> None:
    """The teacher runs its few weights on more pixels: it has more FLOPs and fewer parameters."""
    wide = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    deep = nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 4)
    )
    task = find_task("classification")
    teacher = nn.Sequential(nn.Upsample(scale_factor=4), wide)
    with pytest.warns(TutelageWarning, match=r"deep has 648,004 parameters and its teacher \d,\d+: choose a smaller"):
        warn_if_costlier(Tapped(deep), [Tapped(teacher)], task, tiny_data, "deep")


def test_the_student_is_announced_once_and_failing_students_are_left_to_the_dry_run(tiny_data: Data) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("on purpose")

    lines: list[str] = []
    networks = [Tapped(Fails()), Tapped(Fails())]
    teachers = [Tapped(Fails())]
    start = StudentStart(Config(student="fails"), tiny_data, None, teachers, find_task("classification"), lines.append)
    assert [start(network) for network in networks] == networks
    assert lines == ["student fails: images normalized with mean 0 and std 1 (its own)"]
    assert start.record == {}
