"""The content of the folder of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.runs.run_folders import FILES, STUDENT, epochs, numbers, strict
from tests.runs.uses import own_student, own_teacher, reads_texts
from tutelage.config import Config, read_config
from tutelage.data import Data, open_data
from tutelage.methods import find, installed
from tutelage.models.load import make_model
from tutelage.models.surgery import reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, read_metadata
from tutelage.runs import execute
from tutelage.tasks import evaluate
from tutelage.training.checkpoint import read


def test_a_finished_run_contains_the_documented_files(config: Config, tmp_path: Path) -> None:
    result = execute(config.replace(noise="0.25"), tmp_path / "run")
    folder = tmp_path / "run"
    assert result.folder == folder
    assert {entry.name for entry in folder.iterdir()} == FILES
    written_config = yaml.safe_load((folder / "config.yaml").read_text())
    assert written_config == yaml.safe_load(result.config.as_yaml())
    assert set(written_config) == set(Config.model_fields)
    assert written_config["device"] == "cpu"
    assert written_config["precision"] in ("float32", "bfloat16")  # decided, and recorded as that
    assert isinstance(written_config["channels_last"], bool)
    assert set(strict(folder / "inputs.json")) == {"training data"}
    versions = strict(folder / "versions.json")
    assert versions["torch"] == torch.__version__
    assert versions["python"] == sys.version.split()[0]
    assert [(record["fit"], record["epoch"], record["epochs"]) for record in epochs(folder)] == [(0, 1, 2), (0, 2, 2)]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "fit-00-epoch-00001.ckpt",
        "fit-00-epoch-00002.ckpt",
    ]
    metrics = strict(folder / "result.json")
    assert metrics == result.metrics
    assert [record["learners"] for record in epochs(folder)] == [record["learners"] for record in result.history]
    (noise, *_) = metrics["data"]["record"]
    assert noise["condition"] == "SymmetricNoise"
    assert noise["changed"] == metrics["train"]["wrong_labels"]
    assert noise["realised_rate"] == noise["changed"] / 48


def test_settings_are_written_with_their_defaults(config: Config, teacher: str, tmp_path: Path) -> None:
    execute(config.replace(method="hinton", teacher=teacher, settings={"alpha": 0.5}), tmp_path / "run")
    written_config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written_config["settings"] == {"temperature": 4.0, "alpha": 0.5}
    assert written_config["teacher"] == [teacher]
    assert set(strict(tmp_path / "run" / "inputs.json")) == {"training data", "teacher 1"}


def flat(value: Any) -> list[float]:
    """What is nested in a JSON value, a null as NaN."""
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        return [number for entry in inside for number in flat(entry)]
    return [math.nan if value is None else value]


def test_results_contain_the_last_and_the_selected_epoch(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = config.replace(epochs=6, lr=0.3)
    result = execute(config, folder)
    data = open_data(config.data)
    new_model = Tapped(make_model(STUDENT, num_classes=4, input_shape=(1, 8, 8)).module, *data.mean_std)
    load_weights(folder / "student.safetensors", new_model.module)
    for key, value in evaluate(new_model, data).items():
        assert flat(result.metrics["test"][key]) == pytest.approx(flat(value), rel=1e-5, nan_ok=True), key

    (latest,) = (folder / "checkpoints").glob("*-00006.ckpt")
    epoch, accuracy, state = read(latest)["selected"]["student"]
    new_model.module.load_state_dict(state)
    assert result.metrics["selected"] == {
        "epoch": epoch,
        "validation_accuracy": accuracy,
        "test_accuracy": evaluate(new_model, data)["accuracy"],
    }
    shares = [record["learners"]["student"]["validation_accuracy"] for record in epochs(folder)]
    assert (epoch, accuracy) == (shares.index(max(shares)) + 1, max(shares))


def test_no_epoch_is_selected_without_a_validation_split(config: Config, tiny_data: Data, tmp_path: Path) -> None:
    from dataclasses import replace

    from tutelage.api import train

    result = train(STUDENT, replace(tiny_data, validation=None), validation=0, epochs=1, out=tmp_path / "run")
    assert "selected" not in result.metrics
    assert strict(tmp_path / "run" / "result.json")["test"]["samples"] == 16


def test_memorised_labels_and_fidelity(config: Config, teacher: str, tmp_path: Path) -> None:
    config = config.replace(noise="0.4", seed=3, epochs=12)
    result = execute(config.replace(method="hinton", teacher=teacher), tmp_path / "run")
    from tutelage.data.configured import load_data

    data = load_data(config)
    is_wrong = data.train.labels != data.train.clean_labels
    logits = result.model.eval()(data.train.inputs.permute(0, 3, 1, 2) / 255)  # type: ignore[union-attr]
    answers = logits.argmax(1)
    train_metrics = result.metrics["train"]
    assert train_metrics["wrong_labels"] == int(is_wrong.sum()) > 5
    assert train_metrics["memorised"] == pytest.approx((answers == data.train.labels)[is_wrong].float().mean().item())
    assert train_metrics["train_accuracy_clean"] == pytest.approx(
        (answers == data.train.clean_labels).float().mean().item()
    )
    assert train_metrics["train_accuracy_given"] == pytest.approx((answers == data.train.labels).float().mean().item())
    assert set(result.metrics["teacher"]) == set(train_metrics)
    from tutelage.runs import open_model

    with torch.no_grad():
        pixels = data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
        teacher_logits, student_logits = open_model(teacher, data).eval()(pixels), result.model.eval()(pixels)
    test = result.metrics["test"]
    assert test["agreement"] == pytest.approx(
        (teacher_logits.argmax(1) == student_logits.argmax(1)).float().mean().item()
    )
    divergence = (
        (teacher_logits.softmax(1) * (teacher_logits.log_softmax(1) - student_logits.log_softmax(1))).sum(1).mean()
    )
    assert test["kl_to_teacher"] == pytest.approx(divergence.item(), rel=1e-4)
    assert test["teacher_accuracy"] == pytest.approx(
        (teacher_logits.argmax(1) == data.test.labels).float().mean().item()
    )


OF_IMAGES = [name for name in installed() if find(name).task in (None, "classification") and not reads_texts(name)]


@pytest.mark.filterwarnings("ignore:the teacher .* chance level")
@pytest.mark.parametrize("method", OF_IMAGES)
def test_the_students_file_contains_only_the_student(method: str, config: Config, teacher: str, tmp_path: Path) -> None:
    student, needed = own_student(method, STUDENT), own_teacher(method, "")
    if needed:
        execute(config.replace(student=needed), tmp_path / "own-teacher")
        teacher = str(tmp_path / "own-teacher")
    execute(config.replace(method=method, teacher=teacher, student=student), tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    bare_network = make_model(student, num_classes=4, input_shape=(1, 8, 8)).module
    if operations := read_metadata(file)["surgery"]:  # what the file says was done to the network
        bare_network = reapply(bare_network, operations, torch.zeros(2, 1, 8, 8))
    assert {name: value.shape for name, value in load_file(file).items()} == {
        name: value.shape for name, value in bare_network.state_dict().items()
    }
    bare_network.load_state_dict(load_file(file))  # as anybody would, without this library


@pytest.mark.parametrize("method", ["plain", "hinton", "dml", "fitnet"])
def test_the_written_configuration_makes_the_same_run(
    method: str, config: Config, teacher: str, tmp_path: Path
) -> None:
    teachers = (teacher, teacher) if method == "hinton" else teacher if method == "fitnet" else ()
    config = config.replace(method=method, teacher=teachers, noise="0.2", seed=7, epochs=3)
    execute(config, tmp_path / "first")
    torch.rand(3)
    second_config = Config(**read_config(tmp_path / "first" / "config.yaml"))
    execute(second_config, tmp_path / "second")
    first, second = (tmp_path / name for name in ("first", "second"))
    assert (first / "student.safetensors").read_bytes() == (second / "student.safetensors").read_bytes()
    assert numbers(first) == numbers(second)
    assert epochs(first) == epochs(second)
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    assert (first / "inputs.json").read_bytes() == (second / "inputs.json").read_bytes()


def test_without_a_folder_the_numbers_are_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_of: Any, changed: Any
) -> None:
    folder_result = execute(config, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    folderless_result = execute(config)
    assert folderless_result.folder is None
    assert changed(state_of(folder_result.model), state_of(folderless_result.model)) == set()
    assert folderless_result.metrics["test"] == folder_result.metrics["test"]
    assert list(Path.cwd().iterdir()) == []


def test_training_does_not_read_the_test_split(config: Config, tiny_data: Data, tmp_path: Path) -> None:
    import numpy as np

    with np.load(tmp_path / "tiny.npz") as arrays:
        other = dict(arrays) | {"test_images": 255 - arrays["test_images"], "test_labels": arrays["test_labels"] * 0}
    np.savez(tmp_path / "other.npz", **other)
    execute(config, tmp_path / "one")
    execute(config.replace(data=f"npz:{tmp_path / 'other.npz'}"), tmp_path / "two")
    first_folder, second_folder = (tmp_path / name for name in ("one", "two"))
    assert (first_folder / "student.safetensors").read_bytes() == (second_folder / "student.safetensors").read_bytes()
    assert epochs(first_folder) == epochs(second_folder)
    assert numbers(first_folder)["test"] != numbers(second_folder)["test"]


def test_numbers_that_json_cannot_represent_are_handled(tiny_data: Data, tmp_path: Path) -> None:
    """A held-out part without labels gives no accuracy to select by, and the run is not lost over that."""
    from dataclasses import replace

    from tutelage.api import train

    held_out = tiny_data.validation
    assert held_out is not None
    data = replace(tiny_data, validation=replace(held_out, labels=held_out.labels * 0 - 1))
    result = train(STUDENT, data, epochs=1, out=tmp_path / "run")
    assert "selected" not in result.metrics
    assert all(math.isfinite(value) for value in epochs(tmp_path / "run")[0]["learners"]["student"].values())
