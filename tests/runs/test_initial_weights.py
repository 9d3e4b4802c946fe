"""``init``: a student that starts from trained weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tutelage
from tests.runs.run_folders import STUDENT
from tutelage.config import Config
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights
from tutelage.runs import execute
from tutelage.runs.folder import WEIGHTS
from tutelage.runs.initial_weights import open_initial_weights
from tutelage.runs.models import make_student
from tutelage.studies.plan import Planner
from tutelage.studies.study import Study

Refused = Callable[..., Any]
SAME_START = {"epochs": 1, "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 48, "device": "cpu"}
"""Training that moves no weight."""


@pytest.fixture
def other_classes(tiny_data: Data, tmp_path: Path) -> str:
    """``tiny_data`` with its first two classes only."""
    arrays: dict[str, Any] = {"classes": np.array(["a", "b"])}
    for part, split in tiny_data.splits.items():
        rows = split.labels < 2
        assert isinstance(split.inputs, torch.Tensor)
        key = {"train": "train", "validation": "val", "test": "test"}[part]
        arrays |= {f"{key}_images": split.inputs[rows].numpy(), f"{key}_labels": split.labels[rows].numpy()}
    np.savez(tmp_path / "two.npz", **arrays)
    return f"npz:{tmp_path / 'two.npz'}"


def weights_of(folder: Path, model: Tapped) -> dict[str, torch.Tensor]:
    load_weights(folder / WEIGHTS, model.module)
    return model.module.state_dict()


def trainable(model: Tapped) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.module.named_parameters()}


def test_all_weights_are_loaded_and_recorded(tiny_npz: str, config: Config, tmp_path: Path) -> None:
    first = execute(config, tmp_path / "first")
    lines: list[str] = []
    start = config.replace(init=str(tmp_path / "first"), seed=5, **SAME_START)
    second = execute(start, tmp_path / "second", announce=lines.append)
    torch.testing.assert_close(trainable(second.model), trainable(first.model), rtol=1e-5, atol=1e-7)
    (line,) = lines
    assert line.endswith(f"; all weights from {tmp_path / 'first'}")
    result = json.loads((tmp_path / "second" / "result.json").read_text())
    assert result["init"]["weights"] == str(tmp_path / "first")
    assert result["init"]["not_loaded"] == []
    assert f"--init {tmp_path / 'first'}" in result["command"]
    assert f"init: {tmp_path / 'first'}" in (tmp_path / "second" / "config.yaml").read_text()


def test_a_classifier_for_other_classes_is_left_out(
    config: Config, other_classes: str, tmp_path: Path, tiny_data: Data
) -> None:
    first = execute(config.replace(data=other_classes), tmp_path / "first")
    lines: list[str] = []
    start = config.replace(init=str(tmp_path / "first"), seed=5, **SAME_START)
    second = execute(start, tmp_path / "second", announce=lines.append)
    old, new = trainable(first.model), trainable(second.model)
    classifier = {name for name in new if old[name].shape != new[name].shape}
    assert len(classifier) == 2
    for name in new.keys() - classifier:
        torch.testing.assert_close(new[name], old[name], rtol=1e-5, atol=1e-7)
    with_seed = trainable(execute(start.replace(init=None)).model)
    for name in classifier:  # the weights of the seed
        torch.testing.assert_close(new[name], with_seed[name], rtol=1e-5, atol=1e-7)
    assert "without the classifier (2 classes there, 4 here)" in lines[0]
    assert set(second.metrics["init"]["not_loaded"]) == classifier
    # The normalisation is that of the weights, and is recorded with the new ones, so that the run is read back with it.
    assert second.model.has_normalisation(first.model.mean.flatten().tolist(), first.model.std.flatten().tolist())
    assert f"recorded with {tmp_path / 'first'}" in lines[0]
    again = execute(start, tmp_path / "second")
    assert again.model.has_normalisation(first.model.mean.flatten().tolist(), first.model.std.flatten().tolist())
    assert again.metrics == second.metrics


def test_weights_of_another_network_are_refused_in_one_line(config: Config, tmp_path: Path, refused: Refused) -> None:
    execute(config.replace(student="resnet14x0.25"), tmp_path / "deep")
    with refused("init: ", "resnet14x0.25", "its own network only"):
        execute(config.replace(init=str(tmp_path / "deep")))
    execute(config.replace(student="resnet8x0.25"), tmp_path / "narrow")
    with refused("init: ", "its own network only"):
        execute(config.replace(student="resnet8x0.5", init=str(tmp_path / "narrow")))
    with refused("no trained network"):
        execute(config.replace(init=str(tmp_path / "nowhere")))
    with refused("pretrained=True"):
        execute(config.replace(init="timm/resnet18"))
    with refused("leave one out"):
        config.replace(init="runs/a", pretrained=True)


def test_a_file_of_torch_save_and_a_python_network(tiny_data: Data, config: Config, tmp_path: Path) -> None:
    start = make_student(STUDENT, tiny_data)
    torch.save({"state_dict": start.module.state_dict()}, tmp_path / "w.pt")
    expected = {name: value.clone() for name, value in trainable(start).items()}
    network = make_student(STUDENT, tiny_data)
    result = tutelage.train(network.module, tiny_data, init=f"{STUDENT}@{tmp_path / 'w.pt'}", **SAME_START)
    assert result.model.module is network.module
    torch.testing.assert_close(trainable(result.model), expected, rtol=1e-5, atol=1e-7)


def test_other_weights_are_another_run(tiny_data: Data, config: Config, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "w.safetensors"
    network = make_student(STUDENT, tiny_data).module
    save_weights(file, network, {})
    start = config.replace(init=f"{STUDENT}@{file}", epochs=1)
    execute(start, tmp_path / "run")
    with torch.no_grad():
        next(iter(network.parameters())).add_(1.0)
    save_weights(file, network, {})
    with refused("holds a different run (initial weights: "):
        execute(start, tmp_path / "run")


def test_only_the_first_network_of_a_cohort_starts_from_the_weights(config: Config, tmp_path: Path) -> None:
    execute(config, tmp_path / "first")
    start = config.replace(init=str(tmp_path / "first"), method="dml", **SAME_START)
    cohort = execute(start)
    alone = execute(config.replace(method="plain", **SAME_START, seed=0, init=str(tmp_path / "first")))
    torch.testing.assert_close(trainable(cohort.model), trainable(alone.model), rtol=1e-4, atol=1e-6)


def test_names_of_classes_in_another_order_give_a_warning(tiny_data: Data, config: Config, tmp_path: Path) -> None:
    execute(config, tmp_path / "first")
    renamed = replace(tiny_data, classes=("b", "a", "c", "d"))
    weights = open_initial_weights(str(tmp_path / "first"))
    with pytest.warns(tutelage.TutelageWarning, match="calls its classes differently"):
        weights.load(make_student(STUDENT, tiny_data), renamed)


def test_keys_of_a_study_change_only_with_init(tmp_path: Path) -> None:
    def jobs(**train: Any) -> tuple[str, str, str | None]:
        study = Study(data="digits", methods="hinton", seeds=1, teachers="resnet14", students="resnet8", train=train)
        planner = Planner(study, tmp_path, {"digits": "0"})
        case = next(planner.cases)
        teacher = planner.teacher(case, 0)
        return teacher.key, planner.student(case, "hinton", 0, {}).key, teacher.config.init

    plain, started = jobs(), jobs(init="runs/a")
    assert plain[0] == started[0]  # the teacher does not start from the student's weights
    assert plain[1] != started[1]
    assert started[2] is None
