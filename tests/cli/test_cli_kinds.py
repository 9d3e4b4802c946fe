"""The command line on data, tasks and networks other than image classification."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command
from tutelage.methods import find, installed
from tutelage.models.load import make_model
from tutelage.models.weights import save_weights
from tutelage.tasks import task_names

SHORT = ("--epochs", "2", "--batch-size", "16", "--lr", "0.05", "--device", "cpu", "--precision", "float32")
NETS = """
from torch import nn


def net(num_classes, in_features):
    return nn.Sequential(nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def strict(text: str) -> Any:
    def refuse(value: str) -> None:
        raise ValueError(f"{value} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def arrays(run: Command) -> None:  # run changes the folder
    """Vectors with classes, several labels, a quantity and two, and none, each in a file."""
    random = np.random.default_rng(1)
    inputs = random.normal(size=(64, 4))
    scores = inputs @ random.normal(size=(4, 3))
    labels = {
        "classes": scores.argmax(1),
        "several": (scores > 0).astype(int),
        "number": np.sin(scores[:, 0]),
        "two": np.sin(scores[:, :2]),
        "grades": np.digitize(scores[:, 0], (-1, 1)),
    }
    Path("nets.py").write_text(NETS)
    for name, values in labels.items():
        splits = {"x_train": inputs[:48], "y_train": values[:48], "x_test": inputs[48:], "y_test": values[48:]}
        np.savez(f"{name}.npz", **splits, **({"targets": "ordinal"} if name == "grades" else {}))
    np.savez("none.npz", x_train=inputs[:48], x_test=inputs[48:], y_test=labels["classes"][48:])


OF_TARGETS = {
    "classes": ("classification", "accuracy", "classes"),
    "grades": ("ordinal", "kappa", "grades"),
    "several": ("multi_label", "mean_average_precision", "several labels a sample"),
    "number": ("regression", "rmse", "quantities"),
    "two": ("regression", "rmse", "quantities"),
}


@pytest.mark.parametrize(("name", "task", "main", "noun"), [(k, *v) for k, v in OF_TARGETS.items()])
def test_targets_of_an_archive_lead_from_data_to_evaluation(
    name: str, task: str, main: str, noun: str, run: Command, arrays: None
) -> None:
    code, out, _ = run("data", f"npz:{name}.npz")
    assert code == 0
    assert noun in out
    assert f"vectors (4,), for {task}" in " ".join(out.split())
    code, out, _ = run("data", f"npz:{name}.npz", "--json")
    assert code == 0
    assert len(strict(out)["counts"]["train"]) == {"number": 1, "two": 2}.get(name, 3)

    code, _, err = run("train", "--model", "nets.py:net", "--data", f"npz:{name}.npz", "--out", "t", *SHORT)
    assert code == 0, err
    recorded = strict(Path("t/result.json").read_text())
    assert (recorded["task"], recorded["main"]) == (task, main)
    code, out, _ = run("evaluate", "t", "--device", "cpu", "--json", "--trust")
    assert code == 0
    assert strict(out)[main] == recorded["test"][main]
    code, out, _ = run("evaluate", "nets.py:net@t/student.safetensors", "--device", "cpu")
    assert code == 0
    assert main.replace("_", " ") in out

    words = ("--student", "nets.py:net", "--data", f"npz:{name}.npz", "--method", "rkd", "--trust", *SHORT)
    code, _, err = run("distill", "--teacher", "t", "--out", "s", *words)
    assert code == 0, err
    assert f"{main.replace('_', ' ')} " in err  # what is known of the teacher
    assert "its run recorded" in err
    assert f"teacher_{main}" in strict(Path("s/result.json").read_text())["test"]


def test_vectors_without_labels_are_distilled(run: Command, arrays: None) -> None:
    assert run("train", "--model", "nets.py:net", "--data", "npz:classes.npz", "--out", "t", *SHORT)[0] == 0
    words = ("--student", "nets.py:net", "--data", "npz:none.npz", "--trust", *SHORT)
    code, _, err = run("distill", "--teacher", "t", "--out", "s", "--set", "alpha=1", *words)
    assert code == 0, err
    assert strict(Path("s/result.json").read_text())["test"]["accuracy"] is not None
    code, _, err = run("distill", "--teacher", "t", "--out", "u", *words)
    assert code == 2
    assert "no training sample of npz:none.npz has a label" in err
    code, out, _ = run("data", "npz:none.npz")
    assert code == 0
    assert "without a label" in out


# --- unlabelled images


@pytest.fixture
def write_images(run: Command) -> None:
    """Pictures in one folder, the same with a labelled test part, and a teacher of three classes."""
    random = np.random.default_rng(1)
    for number in range(30):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        for path in (Path("flat"), Path("parts/unlabelled")):
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / f"{number}.png")
    for number in range(12):
        path = Path("parts/test") / "abc"[number % 3]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path / f"{number}.png")
    shutil.copytree("parts/test", "labelled")
    code, _, err = run("train", "--model", "resnet8x0.25", "--data", "folder:labelled", "--out", "t", *SHORT)
    assert code == 0, err


def test_a_folder_of_unlabelled_images_is_distilled_and_evaluated(run: Command, write_images: None) -> None:
    words = ("distill", "--teacher", "t", "--student", "resnet8x0.25", "--set", "alpha=1", *SHORT)
    code, out, err = run(*words, "--data", "folder:flat/", "--out", "s")
    assert code == 0, err
    assert "none: no test sample has a label" in out
    assert "agreement with the teacher" in out
    result = strict(Path("s/result.json").read_text())
    assert result["data"]["classes"] == ["a", "b", "c"]
    assert result["test"]["accuracy"] is None
    code, out, err = run("evaluate", "s", "--teacher", "t", "--device", "cpu", "--json")
    assert code == 0
    assert "no test sample of folder:flat has a label" in err
    assert strict(out)["agreement"] == result["test"]["agreement"]
    code, out, _ = run("evaluate", "s", "--data", "folder:labelled", "--device", "cpu", "--json")
    assert code == 0
    assert strict(out)["accuracy"] is not None


@pytest.mark.parametrize(
    ("method", "setting"),
    [("hinton", "alpha=1"), ("at", "kd_alpha=1"), ("rkd", "kd_alpha=1"), ("fitnet", "kd_alpha=1")],
)
def test_training_on_unlabelled_and_testing_on_labelled_images(
    method: str, setting: str, run: Command, write_images: None
) -> None:
    words = ("--student", "resnet8x0.25", "--method", method, "--set", setting, "--data", "folder:parts", *SHORT)
    code, out, err = run("distill", "--teacher", "t", "--out", "s", *words)
    assert code == 0, err
    assert "test accuracy, last epoch" in out
    result = strict(Path("s/result.json").read_text())
    assert result["test"]["samples"] == 12
    assert "selected" not in result


def test_a_network_without_a_teacher_needs_labels(run: Command, write_images: None) -> None:
    code, _, err = run("train", "--data", "folder:flat", "--out", "s", *SHORT)
    assert code == 2
    assert "no sample of folder:flat has a label, and there is no teacher" in err


# --- lists


def test_methods_are_listed_with_task_and_evidence(run: Command) -> None:
    code, out, _ = run("methods", "--json")
    assert code == 0
    entries = {entry["name"]: entry for entry in strict(out)}
    assert entries["rkd"]["task"] is None
    assert entries["triplets"]["task"] == "clustering"
    assert (entries["mslg"]["evidence"], entries["slr"]["evidence"]) == ("code", "abstract")
    code, out, _ = run("methods", "triplets")
    assert code == 0
    assert "task: clustering; written from: abstract" in out
    assert "task: any; written from: -" in run("methods", "plain")[1]


def test_every_method_records_its_evidence() -> None:
    methods = [find(name) for name in installed()]
    silent = {m.name for m in methods if m.function.__module__.startswith("tutelage.") and m.evidence is None}
    assert silent == {"plain"}


def test_tasks_are_listed_with_their_metrics(run: Command) -> None:
    code, out, _ = run("tasks", "--json")
    assert code == 0
    entries = {entry["name"]: entry for entry in strict(out)}
    assert set(entries) == set(task_names())
    for entry in entries.values():
        main = next(iter(entry["metrics"].values()))
        assert main["better"] in ("higher", "lower")
    assert next(iter(entries["clustering"]["metrics"])) == "nmi"


# --- evaluation of runs of other tasks


@pytest.fixture
def grey(run: Command) -> str:
    """48 training and 16 test images, grey 8x8, of four classes."""
    random = np.random.default_rng(2)
    labels = np.arange(64) % 4
    images = (random.integers(0, 60, (64, 8, 8)) + 60 * (np.arange(8) % 4 == labels[:, None])[:, None]).astype(np.uint8)
    np.savez("grey.npz", x_train=images[:48], y_train=labels[:48], x_test=images[48:], y_test=labels[48:])
    return "npz:grey.npz"


def test_a_run_of_embeddings_is_evaluated_by_its_clusters(run: Command, grey: str) -> None:
    words = ("train", "--model", "resnet8x0.25", "--method", "triplets", "--data", grey, "--out", "t", *SHORT)
    code, out, err = run(*words)
    assert code == 0, err
    assert "mutual information" in out
    recorded = strict(Path("t/result.json").read_text())
    assert (recorded["task"], recorded["main"]) == ("clustering", "nmi")
    code, out, err = run("evaluate", "t", "--device", "cpu", "--json")
    assert code == 0, err
    assert strict(out)["nmi"] == recorded["test"]["nmi"]
    code, out, err = run("evaluate", "resnet8x0.25@t/student.safetensors", "--data", grey, "--device", "cpu")
    assert code == 0, err
    assert "multicut nmi" in out


def test_a_run_of_a_generator_is_evaluated_by_its_images(run: Command, grey: str) -> None:
    network = make_model("mlp-ganx0.125", num_classes=4, input_shape=(1, 8, 8)).module
    save_weights("g.safetensors", network, {})
    words = ("--teacher", "mlp-ganx0.125@g.safetensors", "--student", "mlp-ganx0.125", "--method", "akdg")
    code, out, err = run("distill", *words, "--set", "critic_width=0.125", "--data", grey, "--out", "s", *SHORT)
    assert code == 0, err
    assert "Fréchet distance" in out
    recorded = strict(Path("s/result.json").read_text())
    code, out, err = run("evaluate", "s", "--device", "cpu", "--json")
    assert code == 0, err
    assert strict(out)["frechet_distance"] == recorded["test"]["frechet_distance"]


def test_a_run_of_strings_is_evaluated_by_its_symbols(run: Command, grey: str) -> None:
    with np.load("grey.npz") as arrays:
        strings = {name: np.stack([arrays[name], 1 - arrays[name] % 2], 1) for name in ("y_train", "y_test")}
        np.savez("two.npz", targets="strings", x_train=arrays["x_train"], x_test=arrays["x_test"], **strings)
    Path("reader.py").write_text(READER)
    code, _, err = run("train", "--model", "reader.py:Reader", "--data", "npz:two.npz", "--out", "t", *SHORT)
    assert code == 0, err
    recorded = strict(Path("t/result.json").read_text())
    code, out, err = run("evaluate", "t", "--device", "cpu", "--json", "--trust")
    assert code == 0, err
    assert strict(out)["string_accuracy"] == recorded["test"]["string_accuracy"]
    code, out, _ = run("data", "npz:two.npz", "--json")
    assert strict(out)["counts"]["train"] == [12 + 24, 12 + 24, 12, 12]


READER = """
from torch import nn


class Reader(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, 2 * num_classes)
        self.symbols = num_classes

    def forward(self, images):
        return self.layer(images.flatten(1)).view(-1, 2, self.symbols)
"""


def test_a_folder_of_sounds_is_described(run: Command) -> None:
    from scipy.io import wavfile

    for part, name, count in (("train", "low", 3), ("train", "high", 2), ("test", "low", 1)):
        path = Path(part, name)
        path.mkdir(parents=True)
        for number in range(count):
            wavfile.write(path / f"{number}.wav", 8000, np.arange(100, dtype=np.int16))
    code, out, _ = run("data", "wav:.", "--json")
    assert code == 0
    description = strict(out)
    assert description["classes"] == ["high", "low"]
    assert description["counts"] == {"train": [2, 3], "test": [0, 1]}
    code, out, _ = run("data", "wav:.")
    assert code == 0
    assert "waveforms (1, 100), for classification" in " ".join(out.split())
