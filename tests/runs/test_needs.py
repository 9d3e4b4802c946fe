"""Which labels and teacher outputs a run requires follows from what its terms read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]
SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32", "lr": 0.01}
KD = {"kd_alpha": 1.0}


@pytest.fixture
def backbone(tiny_model: Net) -> Tapped:
    """A network that gives 64 features and no classes."""
    return tiny_model(1, classes=64)


def distil(teacher: nn.Module, student: Tapped, data: Data, method: str, **options: Any) -> tutelage.Result:
    return tutelage.distill(teacher, student, data, method=method, **SHORT, **options)


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize(
    ("method", "settings"), [("rkd", {}), ("sp", {}), ("at", {}), ("fsp", {}), ("fitnet", {"mode": "joint"})]
)
def test_a_network_without_classes_teaches_by_its_features(
    method: str, settings: Any, with_cache: bool, backbone: Tapped, tiny_model: Net, tiny_data: Data, tmp_path: Path
) -> None:
    options = {"teacher_cache": str(tmp_path / "cache")} if with_cache else {}
    result = distil(backbone, tiny_model(), tiny_data, method, settings=settings, out=tmp_path / "run", **options)
    assert 0 <= result.metrics["test"]["accuracy"] <= 1
    assert "agreement" not in result.metrics["test"]
    assert "teacher" not in result.metrics


@pytest.mark.parametrize(
    ("method", "settings"),
    [("hinton", {}), ("fitnet", {}), ("at", {"kd_alpha": 0.5}), ("fsp", {"kd_alpha": 0.5}), ("bss", {}), ("rkd", KD)],
)
def test_it_is_refused_before_the_first_step_where_its_logits_are_read(
    method: str, settings: Any, backbone: Tapped, tiny_model: Net, tiny_data: Data, refused: Any
) -> None:
    epochs: list[Any] = []
    with refused("the teacher of learner 'student'", "(4, 64)", "4 classes of tiny"):
        distil(backbone, tiny_model(), tiny_data, method, settings=settings, report=epochs.append)
    assert epochs == []


@pytest.fixture
def unlabelled(tiny_data: Data) -> Data:
    no_labels = torch.full_like(tiny_data.train.labels, -1)
    parts = {
        name: replace(part, labels=no_labels[: len(part)], clean_labels=no_labels[: len(part)])
        for name, part in (("train", tiny_data.train), ("validation", tiny_data.validation))
        if part is not None
    }
    return replace(tiny_data, **parts)  # type: ignore[arg-type]


LABEL_FREE = [
    ("hinton", {"alpha": 1.0}),
    ("at", KD),
    ("sp", KD),
    ("rkd", KD),
    ("fitnet", KD),
    ("fitnet", KD | {"mode": "joint"}),
    ("fsp", KD),
    ("crd", KD | {"count": 8}),
    ("mlkd", {"ce": 0.0}),
]


@pytest.mark.parametrize(
    ("method", "settings", "held_out"), [(*case, True) for case in LABEL_FREE] + [("hinton", {"alpha": 1}, False)]
)
def test_without_a_label_where_no_term_reads_one(
    method: str, settings: Any, held_out: bool, unlabelled: Data, tiny_model: Net, tmp_path: Path
) -> None:
    data = unlabelled if held_out else replace(unlabelled, validation=None)
    result = distil(tiny_model(1), tiny_model(), data, method, settings=settings, out=tmp_path, validation=0.2)
    assert result.metrics["train"]["train_accuracy_given"] is None
    assert result.metrics["train"]["memorised"] is None
    assert "selected" not in result.metrics
    assert result.metrics["test"]["accuracy"] is not None
    second_result = distil(tiny_model(1), tiny_model(), data, method, settings=settings, out=tmp_path, validation=0.2)
    assert second_result.metrics == result.metrics


@pytest.mark.parametrize(
    ("method", "settings"),
    [("plain", {}), ("hinton", {}), ("hinton", {"alpha": 0.999}), ("at", {}), ("fitnet", {}), ("fsp", {}), ("dml", {})],
)
def test_refused_before_the_first_step_where_one_does(
    method: str, settings: Any, unlabelled: Data, tiny_model: Net, refused: Any
) -> None:
    epochs: list[Any] = []
    with refused("no training sample of tiny has a label", "kd_alpha=1"):
        distil(tiny_model(1), tiny_model(), unlabelled, method, settings=settings, report=epochs.append)
    assert epochs == []


# --- defaults that depend on another parameter


@pytest.mark.parametrize(
    ("method", "setting", "name", "value"),
    [
        ("at", {}, "beta", 250.0),
        ("at", {"form": "paper"}, "beta", 0.1),
        ("at", {"form": "paper", "beta": 3}, "beta", 3.0),
        ("fitnet", {"mode": "joint"}, "beta", 1.0),
        ("fitnet", {"mode": "joint", "reduction": "mean"}, "beta", 100.0),
        ("fsp", {}, "init_lr", 0.1),
        ("fsp", {"reduction": "paper"}, "init_lr", 0.01),
    ],
)
def test_a_default_belongs_to_its_form(method: str, setting: Any, name: str, value: float) -> None:
    assert find(method).check(setting)[name] == value


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_a_form_without_a_default_is_refused(tiny_model: Net, tiny_data: Data, refused: Any) -> None:
    with refused("beta has no default", "reduction=paper", "set it"):
        distil(tiny_model(1), tiny_model(), tiny_data, "fitnet", settings={"mode": "joint", "reduction": "paper"})


def test_a_wrong_form_is_what_is_refused(refused: Any) -> None:
    with refused("form", "'code' or 'paper'", "'papr'"):
        find("at").check({"form": "papr"})


def test_the_page_of_a_method_shows_each_forms_default() -> None:
    assert find("at").parameters["beta"].endswith("250.0 with form=code, 0.1 with form=paper")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find("at").settings().beta == 250.0


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_the_recorded_settings_hold_the_value(tiny_model: Net, tiny_data: Data) -> None:
    result = distil(tiny_model(1), tiny_model(), tiny_data, "at", settings={"form": "paper"})
    assert result.metrics["settings"]["beta"] == result.config.settings["beta"] == 0.1
