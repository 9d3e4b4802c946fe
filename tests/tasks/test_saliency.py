"""The saliency task: its metrics by hand, its drawings, other methods on it, and its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.evaluation import saliency_loops as loops
from tests.tasks.cases import OfMaps, case_of
from tutelage.data import Batch, Data, Maps
from tutelage.evaluation.saliency import centre_prior
from tutelage.models.outputs import Outputs
from tutelage.report.run import write_run_page
from tutelage.tasks import Compute, evaluate, find_task

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu", "precision": "float32"}
NAN = float("nan")


class Fixed(nn.Module):
    """Returns logits of the given maps, selected by the first pixel of each image."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Tensor:
        return self.maps[(images[:, 0, 0, 0] * 255).round().long()].logit()[:, None]


def numbered(labels: Tensor) -> Data:
    images = torch.zeros(*labels[:, 0].shape, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return Data.from_arrays((images, labels), (images, labels), targets=Maps(), classes=["saliency"])


def random_labels(count: int = 5) -> tuple[Tensor, Tensor]:
    """Maps (N, 4, 6) in (0, 1) and labels (N, 2, 4, 6)."""
    generator = torch.Generator().manual_seed(5)
    maps, density = torch.rand(2, count, 4, 6, generator=generator) * 0.9 + 0.05
    return maps, torch.stack([density, torch.poisson(torch.full((count, 4, 6), 0.6), generator)], 1)


def test_metrics_are_means_over_the_images_that_define_them() -> None:
    maps, labels = random_labels()
    labels[1] = NAN  # unlabelled
    labels[2, 1] = NAN  # a density alone
    result = evaluate(Fixed(maps), numbered(labels), device="cpu")
    values_by_name: dict[str, list[float]] = {}
    for image in (0, 2, 3, 4):
        p, q = maps[image].tolist(), labels[image, 0].tolist()
        values = {"cc": loops.cc(p, q), "sim": loops.sim(p, q), "kl": loops.kl(p, q)}
        if image != 2:
            f, others = labels[image, 1].tolist(), labels[[n for n in (0, 3, 4) if n != image], 1].sum(0).tolist()
            centre = centre_prior(4, 6).tolist()
            values |= {"nss": loops.nss(p, f), "auc_judd": loops.auc_judd(p, f), "auc_borji": loops.auc_borji(p, f)}
            values |= {"auc_shuffled": loops.auc_shuffled(p, f, others), "centre_nss": loops.nss(centre, f)}
            values |= {"centre_auc_shuffled": loops.auc_shuffled(centre, f, others)}
        for name, value in values.items():
            values_by_name.setdefault(name, []).append(value)
    expected = {name: sum(values) / len(values) for name, values in values_by_name.items()}
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert result["samples"] == 5


def test_undefined_metrics_are_none() -> None:
    maps, labels = random_labels()
    labels[:, 1] = NAN
    result = evaluate(Fixed(maps), numbered(labels), device="cpu")
    assert result["nss"] is result["auc_judd"] is result["auc_shuffled"] is result["centre_nss"] is None
    assert result["cc"] is not None


def test_map_of_another_size_is_scaled() -> None:
    maps, labels = random_labels()
    constant = torch.full((5, 2, 3), 0.3)
    assert evaluate(Fixed(constant), numbered(labels), device="cpu")["cc"] == 0
    assert evaluate(Fixed(maps.repeat_interleave(2, 1).repeat_interleave(2, 2)), numbered(labels), device="cpu")[
        "cc"
    ] == pytest.approx(evaluate(Fixed(maps), numbered(labels), device="cpu")["cc"], abs=1e-5)


def test_training_metric_is_the_mean_correlation_of_labelled_images() -> None:
    maps, labels = random_labels()
    labels[1] = NAN
    batch = Batch(torch.zeros(5, 1, 4, 6), labels, torch.arange(5), None)
    total, count = find_task("saliency").training_metric(Outputs(maps.logit()[:, None]), batch).tolist()  # type: ignore[union-attr]
    expected = [loops.cc(maps[n].tolist(), labels[n, 0].tolist()) for n in (0, 2, 3, 4)]
    assert count == 4
    assert total == pytest.approx(sum(expected), abs=1e-5)


def test_drawings_show_the_worst_images_first_and_mark_fixations() -> None:
    maps, labels = random_labels(20)
    maps[7] = 1 - labels[7, 0]  # the worst
    labels[3] = NAN
    data = numbered(labels)
    drawings = find_task("saliency").drawings(Fixed(maps), data.test, data, Compute())
    assert len(drawings) == 12
    assert drawings[0].caption.startswith("sample 7: image, where people looked, prediction; CC -1.00, NSS ")
    scores = [float(drawing.caption.split("CC ")[1].split(",")[0]) for drawing in drawings]
    assert scores == sorted(scores)
    assert not any(drawing.caption.startswith("sample 3:") for drawing in drawings)
    pixels = drawings[0].pixels
    assert (pixels.shape, pixels.dtype) == ((4, 3 * 6 + 8, 3), torch.uint8)
    people, prediction = pixels[:, 10:16], pixels[:, 20:]
    marked = (people == torch.tensor([255, 64, 26])).all(2)
    assert torch.equal(marked, labels[7, 1] > 0)
    assert torch.equal(prediction[..., 0] == 255, maps[7] == maps[7].max())
    assert torch.equal(prediction[..., 0] == 0, maps[7] == maps[7].min())


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4, 6), (5, 4, 6)])
def test_other_outputs_are_refused(shape: tuple[int, ...], refused: Any) -> None:
    _, labels = random_labels()

    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(shape)

    with refused("the network returns", shape, "(5, 1, H, W)"):
        evaluate(Other(), numbered(labels), device="cpu")


def test_maps_of_another_size_than_their_images_are_refused(refused: Any) -> None:
    _, labels = random_labels()
    images = torch.zeros(5, 8, 12, 1, dtype=torch.uint8)
    data = Data.from_arrays((images, labels), (images, labels), targets=Maps(), name="mine")
    with refused("the maps of the train split of mine are 4 x 6", "images 8 x 12", "scale the maps"):
        tutelage.train(OfMaps, data, **SHORT)


# --- methods of other tasks


@pytest.fixture
def trained(tmp_path: Path) -> tutelage.Result:
    case = case_of("saliency")
    return tutelage.train(lambda: OfMaps(16), case.data, out=tmp_path / "teacher", **SHORT | {"epochs": 20})


@pytest.mark.parametrize(("method", "settings"), [("hinton", {}), ("hinton", {"alpha": 1.0}), ("fitnet", {})])
def test_soft_targets_are_those_of_pixels(method: str, settings: Any, trained: tutelage.Result) -> None:
    case = case_of("saliency")
    result = tutelage.distill(trained.model, case.make, case.data, method=method, settings=settings, **SHORT)
    assert result.metrics["test"]["teacher_cc"] == pytest.approx(trained.metrics["test"]["cc"], abs=1e-5)
    name = "soft" if method == "fitnet" else "kd"
    assert 0 < result.history[-1]["learners"]["student"][name] < 16


@pytest.mark.parametrize("method", ["at", "sp", "rkd", "fitnet"])
def test_methods_on_features_train_on_maps(method: str, trained: tutelage.Result) -> None:
    case = case_of("saliency")
    result = tutelage.distill(trained.model, case.make, case.data, method=method, **SHORT)
    assert result.metrics["test"]["cc"] is not None
    assert result.metrics["forward_passes"]["teacher"] > 0


def test_methods_whose_losses_are_of_classes_are_refused(refused: Any) -> None:
    case = case_of("saliency")
    with refused("saliency maps for labels", "whose task is saliency", "classification"):
        tutelage.train(case.make, case.data, method="mean_teacher_lc", **SHORT)


def test_peers_match_the_outcomes_of_each_pixel() -> None:
    case = case_of("saliency")
    result = tutelage.train(case.make, case.data, method="dml", **SHORT)
    assert 0 < result.history[-1]["learners"]["net1"]["mimicry"] < 16


def test_training_beats_the_centre_where_the_centre_says_nothing(trained: tutelage.Result) -> None:
    test = trained.metrics["test"]
    assert test["cc"] > 0.5 > test["centre_cc"]
    assert test["auc_shuffled"] > 0.8


def test_page_of_a_run_shows_the_drawings(trained: tutelage.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    data = case_of("saliency").data
    monkeypatch.setattr("tutelage.report.run.drawings.open_run_data", lambda run: data)
    monkeypatch.setattr(
        "tutelage.report.run.drawings.open_trained",
        lambda run, data, trust: type("Network", (), {"model": trained.model}),
    )
    text = write_run_page(str(trained.folder)).read_text()
    assert text.count("where people looked, prediction") == 2 * 12
