"""``distill`` and ``train`` called from Python: folders, names of trained networks, and the recorded command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tutelage
from tests.runs.calls import SHORT, Net, pixels, share_correct
from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.load import make_model
from tutelage.models.weights import save_weights
from tutelage.runs import open_model

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


def test_a_trained_network_is_named_by_folder_or_by_file(finished_run: Path, tiny_data: Data, tiny_npz: str) -> None:
    by_folder = open_model(str(finished_run), tiny_data)
    by_file = open_model(f"resnet8x0.5@{finished_run / 'student.safetensors'}", tiny_data)
    x = pixels(tiny_data)
    assert torch.equal(by_folder.eval()(x), by_file.eval()(x))
    assert share_correct(by_folder, tiny_data) > 0.6
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
