"""Finding labels that look wrong: the ranking, the files, the repaired labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import tutelage
from tutelage.data import Data, Split, open_data
from tutelage.data.modality import Pixels
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.labels import LabelIssues, save_issues
from tutelage.labels.issues import matrix_interval
from tutelage.labels.page import common_folder
from tutelage.models.zoo import build
from tutelage.studies.statistics import Interval

FIELDS: dict[str, Any] = {"epochs": 15, "device": "cpu", "seed": 1, "folds": 3}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder of digits, 60 of each class, with twenty images in the folder of another class; and their names."""
    folder = tmp_path_factory.mktemp("digits")
    digits = open_data("digits").train
    moved = set()
    for label in range(10):
        rows = (digits.labels == label).nonzero()[:60, 0].tolist()
        for number, row in enumerate(rows):
            given = (label + 3) % 10 if number < 2 else label
            file = folder / "images" / f"class{given}" / f"{label}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.inputs[row].squeeze(2).numpy()).save(file)  # type: ignore[arg-type]
            if number < 2:
                moved.add(f"class{given}/{file.name}")
    return folder / "images", moved


@pytest.fixture(scope="module")
def issues(swapped: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelIssues, Path]:
    out = tmp_path_factory.mktemp("labels")
    return tutelage.label_issues(
        f"folder:{swapped[0]}", mlp, out=out, test=0.2, augment=False, repair="remove", **FIELDS
    ), out


def test_swapped_images_are_at_the_top_of_the_list(
    issues: tuple[LabelIssues, Path], swapped: tuple[Path, set[str]]
) -> None:
    label_issues, _ = issues
    rows = list(label_issues.rows())
    assert all(any(row["file"].endswith(name) for row in rows) for name in swapped[1])
    top = [row["file"] for row in rows[: len(swapped[1])]]
    assert sum(any(file.endswith(name) for name in swapped[1]) for file in top) >= 0.8 * len(swapped[1])
    assert [row["wrong"] for row in rows] == sorted((row["wrong"] for row in rows), reverse=True)
    found_swaps = [row for row in rows if row["doubted"] and row["file"].endswith(tuple(swapped[1]))]
    right = sum(int(row["suggested"][-1]) == (int(row["label"][-1]) - 3) % 10 for row in found_swaps)
    assert right >= 0.8 * len(found_swaps) > 0.5 * len(swapped[1])


def test_samples_drawn_for_testing_are_examined_by_the_network_that_was_trained_without_them(
    issues: tuple[LabelIssues, Path], swapped: tuple[Path, set[str]]
) -> None:
    label_issues, _ = issues
    assert len(label_issues.labels) == 600
    rows = [row for row in label_issues.rows() if row["differences"] is None]
    assert len(rows) == 120
    assert sorted(row["sample"] for row in label_issues.rows()) == list(range(600))
    truth = [row["file"].endswith(tuple(swapped[1])) for row in rows]
    assert 0 < sum(truth) == sum(truth[: sum(truth) + 2])
    assert all(row["agreement"] is None and 0 <= row["out_of_sample"] <= 1 for row in rows)


def test_samples_of_a_test_split_of_its_own_are_not_examined() -> None:
    label_issues = tutelage.label_issues("digits", mlp, compare=False, **FIELDS | {"epochs": 1, "folds": 2})
    assert len(label_issues.labels) == len(open_data("digits").train)


def test_a_changed_training_split_is_examined_alone(swapped: tuple[Path, set[str]]) -> None:
    fields = FIELDS | {"epochs": 1, "folds": 2, "per_class": 10}
    label_issues = tutelage.label_issues(f"folder:{swapped[0]}", mlp, test=0.2, compare=False, **fields)
    assert len(label_issues.labels) == 100


class Trained(nn.Module):
    """A network of other classes, whose features are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        classes: Tensor = self.classifier(self.flatten(images))
        return classes


def test_features_of_a_trained_network_take_the_place_of_the_images(
    swapped: tuple[Path, set[str]], tmp_path: Path
) -> None:
    label_issues = tutelage.label_issues(
        f"folder:{swapped[0]}", features=Trained(), out=tmp_path, test=0.2, augment=False, **FIELDS
    )
    rows = list(label_issues.rows())
    assert len(rows) == 600
    assert sum(row["file"].endswith(tuple(swapped[1])) for row in rows[:20]) >= 16
    assert label_issues.data.train.modality == Pixels()
    assert "data:image/png;base64," in save_issues(label_issues, tmp_path)[2].read_text()


def test_weights_without_a_normalisation_are_reported(swapped: tuple[Path, set[str]], tmp_path: Path) -> None:
    weights = tmp_path / "resnet8x0.5.safetensors"
    save_file(build("resnet8x0.5", num_classes=10, input_shape=(1, 8, 8)).state_dict(), weights)
    fields = FIELDS | {"epochs": 1, "folds": 2, "compare": False, "test": 0.2}
    with pytest.warns(TutelageWarning, match="records no normalization"):
        tutelage.label_issues(f"folder:{swapped[0]}", features=f"resnet8x0.5@{weights}", **fields)


def test_options_without_effect_on_features_are_refused(swapped: tuple[Path, set[str]]) -> None:
    with pytest.raises(TutelageError, match="epoch"):
        tutelage.label_issues(f"folder:{swapped[0]}", features=Trained(), test=0.2, device="cpu", epoch=3)
    with pytest.raises(TutelageError, match="noise"):
        tutelage.label_issues(open_data("digits"), features=Trained(), device="cpu", noise="0.2")


def test_a_network_without_a_vector_of_features_is_refused(swapped: tuple[Path, set[str]]) -> None:
    network = nn.Conv2d(1, 10, 1)
    with pytest.raises(TutelageError, match="embedding"):
        tutelage.label_issues(f"folder:{swapped[0]}", features=network, test=0.2, **FIELDS)


def test_saved_files_agree(issues: tuple[LabelIssues, Path], tmp_path: Path) -> None:
    label_issues, _ = issues
    files = save_issues(label_issues, tmp_path, apply=True)
    assert [file.name for file in files] == ["issues.csv", "issues.json", "labels.html", "labels.csv"]
    with files[0].open() as stream:
        rows = list(csv.DictReader(stream))
    summary = json.loads(files[1].read_text())
    assert len(rows) == summary["labels"] == len(label_issues.labels)
    assert sum(row["doubted"] == "True" for row in rows) == summary["doubted"] == len(summary["issues"])
    assert rows[0]["file"] == summary["issues"][0]["file"]
    low, high = summary["noise_rate_interval"]
    assert low <= summary["noise_rate"] <= high
    assert 0 < summary["plain_accuracy"] <= 1
    page = files[2].read_text()
    assert page.count("data:image/png;base64,") >= summary["doubted"] / 2
    worst = Path(rows[0]["file"])
    assert f'<span class="file">{worst.parent.name}/{worst.name}</span>' in page
    assert rows[0]["file"] not in page
    assert "http" not in page.replace("http-equiv", "")


def test_repaired_labels_train(
    issues: tuple[LabelIssues, Path], swapped: tuple[Path, set[str]], tmp_path: Path
) -> None:
    label_issues, _ = issues
    before = {file: file.read_bytes() for file in swapped[0].rglob("*.png")}
    (*_, labels) = save_issues(label_issues, tmp_path, apply=True)
    fields: dict[str, Any] = {"test": 0.2, "validation": 0.0, "epochs": 1, "device": "cpu"}
    result = tutelage.train(mlp, f"folder:{swapped[0]}", noise=f"human:{labels}:cleaned", **fields)
    doubted = int(label_issues.doubted.sum())
    assert result.metrics["test"]["accuracy"] > 0
    with labels.open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(row["cleaned"] == "-1" != row["clean"] for row in rows) == doubted
    assert before == {file: file.read_bytes() for file in swapped[0].rglob("*.png")}


def test_a_second_call_reads_the_finished_runs(
    issues: tuple[LabelIssues, Path], swapped: tuple[Path, set[str]]
) -> None:
    label_issues, out = issues
    records: list[Any] = []
    second_result = tutelage.label_issues(
        f"folder:{swapped[0]}", mlp, out=out, test=0.2, augment=False, repair="remove", report=records.append, **FIELDS
    )
    assert not records
    assert torch.equal(label_issues.wrong, second_result.wrong)


def test_common_folder_ends_at_a_separator() -> None:
    assert common_folder(("/a/photos/cat/1.jpg", "/a/photos/car/2.jpg")) == "/a/photos/"
    assert common_folder(("/a/photos/1.jpg",)) == "/a/photos/"
    assert common_folder(("cat/1.jpg", "dog/1.jpg")) == common_folder(()) == ""


def issues_of(labels: list[int], wrong: list[float], names: tuple[str, ...] = ("a", "b")) -> LabelIssues:
    """Issues of black images with these labels."""
    size = len(labels)
    split = Split.of(torch.zeros(size, 4, 4, 1, dtype=torch.uint8), torch.tensor(labels))
    data = Data("<script>", names, split, split)
    support = {name: torch.linspace(0, 1, size) for name in ("out_of_sample", "differences", "agreement", "posterior")}
    suggested = (1 - torch.tensor(labels)).clamp(-1, 1)
    rate = Interval(0.1, float("nan"), float("nan"), 1)
    return LabelIssues(
        data,
        torch.tensor(wrong).double(),
        suggested,
        support,
        rate,
        torch.eye(2),
        torch.eye(2).repeat(2, 1, 1),
        None,
        None,
        "replace",
    )


def test_ties_are_ordered_by_the_evidence_and_unlabelled_samples_are_left_out() -> None:
    label_issues = issues_of([0, 1, -1, 0, 1], [0.9, 0.2, float("nan"), 0.9, 0.2])
    assert label_issues.ranking.tolist() == [0, 3, 1, 4]
    assert label_issues.doubted.tolist() == [False, False, False, True, False]  # of each class one is not doubted
    assert label_issues.cleaned_labels().tolist() == [0, 1, -1, 1, 1]


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    label_issues = issues_of([0, 1, 0, 1], [0.9, 0.1, 0.2, 0.8], names=("<b>x</b>", "y"))
    page = save_issues(label_issues, tmp_path)[2].read_text()
    assert "<script>" not in page
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_entries_of_the_noise_matrix_have_intervals_over_folds() -> None:
    from scipy import stats

    by_fold = torch.tensor([[[0.7, 0.3], [0.0, 1.0]], [[0.8, 0.2], [0.0, 1.0]], [[0.9, 0.1], [0.0, 1.0]]]).double()
    low, high = matrix_interval(torch.tensor([[0.85, 0.15], [0.0, 1.0]]).double(), by_fold)
    half = float(stats.t.ppf(0.975, 2)) * 0.1 / 3**0.5
    assert low.flatten().tolist() == pytest.approx([0.85 - half, 0.0, 0.0, 1.0])
    assert high.flatten().tolist() == pytest.approx([1.0, 0.15 + half, 0.0, 1.0])


def test_drpl_orders_the_labels(tmp_path: Path) -> None:
    records: list[Any] = []
    fields = FIELDS | {"epochs": 3, "by": "drpl", "folds": 2, "per_class": 12, "report": records.append}
    label_issues = tutelage.label_issues("digits", mlp, **fields)
    assert {record["fit"] for record in records} == {*range(7)}  # folds, DRPL's three, cleaned, plain
    assert set(label_issues.support) == {"out_of_sample", "differences", "agreement", "posterior", "drpl"}
    by_support = label_issues.wrong[label_issues.support["drpl"].argsort()]
    assert (by_support.diff() <= 1e-9).all()
    summary = json.loads(save_issues(label_issues, tmp_path)[1].read_text())
    low, high = (torch.tensor(end) for end in summary["noise_matrix_interval"])
    assert (low <= torch.tensor(summary["noise_matrix"]) + 1e-6).all()
    assert (high >= torch.tensor(summary["noise_matrix"]) - 1e-6).all()


def test_vectors_have_a_page_without_images(tmp_path: Path) -> None:
    from tutelage.data.modality import Vectors

    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=80)
    inputs = (generator.normal(size=(80, 5)) + 2 * labels[:, None]).astype(np.float32)
    data = Data.from_arrays((inputs, labels), (inputs, labels), modality=Vectors())
    label_issues = tutelage.label_issues(data, lambda: nn.Linear(5, 2), folds=2, epochs=2, compare=False, device="cpu")
    page = save_issues(label_issues, tmp_path)[2].read_text()
    assert "data:image" not in page
    assert label_issues.plain_accuracy is None
