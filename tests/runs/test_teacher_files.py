"""Teachers by name whose files record other classes or another size of inputs than the data have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tests.conftest import Command
from tests.tasks.cases import case_of
from tutelage.config import Config
from tutelage.data import Data, open_data
from tutelage.errors import TutelageWarning
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs import execute
from tutelage.tasks import find_task, incompatibility

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32", "lr": 0.01}
FEATURES = [("rkd", {}), ("sp", {}), ("at", {}), ("fsp", {}), ("fitnet", {"mode": "joint"})]
FIXED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4 * image_size * image_size, num_classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))

    def forward(self, x):
        return self.body(x).mean((2, 3))
"""


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., str]:
    """Makes a teacher's file and names it."""

    def make(classes: int, size: int = 8, spec: str = "resnet8x0.25", names: str = "abcdefgh") -> str:
        module = make_model(spec, num_classes=classes, input_shape=(1, size, size)).module
        about = {"classes": list(names[:classes]), "image_shape": [1, size, size]}
        file = tmp_path / f"{classes}-{size}.safetensors"
        save_weights(file, module, {"mean": [0.5], "std": [0.5], **about})
        return f"{spec}@{file}"

    return make


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(FIXED)
    return str(tmp_path / "nets.py")


@pytest.mark.parametrize(("method", "settings"), FEATURES)
def test_a_file_for_other_classes_can_teach_if_no_term_reads_logits(
    method: str, settings: Any, file_of: Callable[..., str], tiny_npz: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    config = Config(
        data=tiny_npz, student="resnet8x0.25", teacher=(file_of(6),), method=method, settings=settings, **SHORT
    )
    result = execute(config, tmp_path / "run", announce=lines.append)
    assert 0 <= result.metrics["test"]["accuracy"] <= 1
    assert not {"agreement", "teacher_accuracy"} & set(result.metrics["test"])
    assert "not evaluated here: ResNet returns outputs of shape (2, 6) for 4 classes" in lines[0]
    second_result = execute(config, tmp_path / "run")
    assert second_result.metrics == result.metrics


@pytest.mark.parametrize(
    ("method", "settings"), [("hinton", {}), ("at", {"kd_alpha": 0.5}), ("fitnet", {}), ("bss", {})]
)
def test_a_file_for_other_classes_is_refused_before_the_first_step_if_logits_are_read(
    method: str, settings: Any, file_of: Callable[..., str], tiny_npz: str, refused: Any
) -> None:
    epochs: list[Any] = []
    with refused("the teacher of learner 'student'", "(4, 6)", "4 classes of npz:"):
        tutelage.distill(
            file_of(6), "resnet8x0.25", tiny_npz, method=method, settings=settings, report=epochs.append, **SHORT
        )
    assert epochs == []


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_other_names_of_the_same_number_of_classes_give_a_warning(file_of: Callable[..., str], tiny_npz: str) -> None:
    with pytest.warns(TutelageWarning, match="calls its classes differently.*same order"):
        tutelage.distill(file_of(4, names="acbd"), "resnet8x0.25", tiny_npz, method="at", **SHORT)


@pytest.mark.filterwarnings("ignore:.*chance level")
@pytest.mark.parametrize(("method", "settings"), [("at", {}), ("rkd", {}), ("hinton", {})])
def test_a_file_for_another_image_size_can_teach(
    method: str, settings: Any, file_of: Callable[..., str], tiny_npz: str
) -> None:
    result = tutelage.distill(file_of(4, 16), "resnet8x0.25", tiny_npz, method=method, settings=settings, **SHORT)
    assert 0 <= result.metrics["test"]["agreement"] <= 1


@pytest.mark.parametrize("method", ["at", "rkd", "hinton"])
def test_a_file_whose_network_does_not_accept_the_images_is_refused(
    method: str, file_of: Callable[..., str], code: str, tiny_npz: str, refused: Any
) -> None:
    teacher = file_of(4, 16, f"{code}:Net")  # its weights are loaded: it is built for the size that the file records
    with refused("images of shape (1, 8, 8)", "1024"):
        tutelage.distill(teacher, "resnet8x0.25", tiny_npz, method=method, teacher_size=8, **SHORT)


def test_a_file_for_inputs_of_another_kind_is_refused(tmp_path: Path, tiny_npz: str, refused: Any) -> None:
    module = make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module
    save_weights(tmp_path / "w.safetensors", module, {"classes": list("abcd"), "input_shape": [6]})
    with refused("trained on inputs of shape (6,)", "images", "(1, 8, 8)"):
        tutelage.distill(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", "resnet8x0.25", tiny_npz, **SHORT)


@pytest.mark.parametrize("method", ["rkd", "sp", "at"])
def test_the_file_of_a_backbone_can_teach_by_its_features(
    method: str, code: str, file_of: Callable[..., str], tiny_npz: str, tmp_path: Path
) -> None:
    module = make_model(f"{code}:Backbone", num_classes=4, input_shape=(1, 8, 8)).module
    save_weights(tmp_path / "w.safetensors", module, {"image_shape": [1, 8, 8]})
    result = tutelage.distill(
        f"{code}:Backbone@{tmp_path / 'w.safetensors'}",
        "resnet8x0.25",
        tiny_npz,
        method=method,
        out=tmp_path / "run",
        **SHORT,
    )
    assert "agreement" not in result.metrics["test"]


def test_a_run_with_a_teacher_file_of_other_classes_is_evaluated(
    file_of: Callable[..., str], tiny_npz: str, tmp_path: Path, run: Command
) -> None:
    teacher, folder = file_of(6), str(tmp_path / "run")
    result = tutelage.distill(teacher, "resnet8x0.25", tiny_npz, method="at", out=folder, **SHORT)
    code, out, err = run("evaluate", folder, "--device", "cpu", "--json", "--teacher", teacher)
    assert code == 0
    metrics = json.loads(out)
    assert metrics["accuracy"] == result.metrics["test"]["accuracy"]
    assert "agreement" not in metrics
    assert "not compared: ResNet returns outputs of shape (2, 6) for 4 classes" in err
    code, _, err = run("evaluate", teacher, "--data", tiny_npz, "--device", "cpu")
    assert code == 2
    assert "was trained for 6 classes and npz:" in err


# --- what a task can evaluate


def test_an_embedding_is_found_as_evaluation_finds_it(tiny_data: Data, tiny_model: Callable[..., Tapped]) -> None:
    for task in (find_task("clustering"), find_task("few_shot")):
        headless = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)))
        assert incompatibility(task, headless, tiny_data) is None
        assert incompatibility(task, tiny_model(), tiny_data) is None
        assert "embedding" in str(incompatibility(task, Tapped(nn.Conv2d(1, 2, 3)), tiny_data))


def test_a_misfit_names_what_does_not_fit(tiny_data: Data, tiny_model: Callable[..., Tapped]) -> None:
    task = find_task("classification")
    assert incompatibility(task, tiny_model(), tiny_data) is None
    assert "(2, 7)" in str(incompatibility(task, tiny_model(classes=7), tiny_data))
    assert "cannot take images of shape (1, 8, 8)" in str(incompatibility(task, tiny_model(channels=3), tiny_data))


@pytest.mark.filterwarnings("error:.*probabilities")
def test_proportions_are_no_probabilities_to_warn_of() -> None:
    case = case_of("regression")
    proportions = nn.Sequential(case.make(), nn.Softmax(1))
    tutelage.train(lambda: proportions, case.data, **SHORT)


def test_probabilities_of_strings_are_warned_of() -> None:
    case = case_of("strings")
    with pytest.warns(TutelageWarning, match="gives probabilities"):
        tutelage.train(lambda: nn.Sequential(case.make(), nn.Softmax(2)), case.data, **SHORT)


# --- no labels


@pytest.fixture
def unlabelled(tiny_npz: str) -> Data:
    train = open_data(tiny_npz).train
    return Data.from_arrays((train.inputs, None), test_share=0.25)  # type: ignore[arg-type]


def strict(file: Path) -> Any:
    def refuse(value: str) -> None:
        raise ValueError(f"{value} is no JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(("method", "settings"), [("hinton", {"alpha": 1}), ("at", {"kd_alpha": 1})])
def test_a_teacher_names_the_classes_of_data_without_labels(
    method: str, settings: Any, unlabelled: Data, file_of: Callable[..., str], tmp_path: Path
) -> None:
    result = tutelage.distill(
        file_of(6), "resnet8x0.25", unlabelled, method=method, settings=settings, out=tmp_path / "run", **SHORT
    )
    record = strict(tmp_path / "run" / "result.json")
    assert record["data"]["classes"] == list("abcdef")
    assert record["test"]["accuracy"] is None
    assert record["test"]["teacher_accuracy"] is None
    assert 0 <= record["test"]["agreement"] <= 1
    assert record["test"]["kl_to_teacher"] >= 0
    assert "selected" not in record
    assert result.model(torch.zeros(1, 1, 8, 8)).shape == (1, 6)


def test_outputs_of_an_object_are_numbered(unlabelled: Data, tiny_model: Callable[..., Tapped]) -> None:
    result = tutelage.distill(tiny_model(classes=5), "resnet8x0.25", unlabelled, settings={"alpha": 1}, **SHORT)
    assert result.metrics["data"]["classes"] == ["0", "1", "2", "3", "4"]


def test_data_without_class_names_from_data_or_teacher_is_refused(
    unlabelled: Data, file_of: Callable[..., str], tmp_path: Path, refused: Any
) -> None:
    with refused("no sample of arrays has a label", "no teacher"):
        tutelage.train("resnet8x0.25", unlabelled, **SHORT)
    module = make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module
    save_weights(tmp_path / "w.safetensors", module, {})
    with refused("does not record its classes", "arrays has none"):
        tutelage.distill(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", "resnet8x0.25", unlabelled, **SHORT)
    with refused("are not logits (B, C)"):
        tutelage.distill(nn.Conv2d(1, 2, 3), "resnet8x0.25", unlabelled, **SHORT)
    with refused("no training sample of arrays has a label", "alpha=1"):
        tutelage.distill(file_of(4), "resnet8x0.25", unlabelled, **SHORT)
