"""The method triplets: clusters after training, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage import train
from tutelage.cli import main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.data.loader import Batches
from tutelage.data.orders import PK
from tutelage.errors import TutelageError
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.tasks import evaluate
from tutelage.terms.triplets import draw_triplets
from tutelage.training import Run

Net = Callable[..., Tapped]
SHORT: dict[str, Any] = {"method": "triplets", "device": "cpu", "precision": "float32", "workers": 0, "augment": False}


def embedder() -> nn.Module:
    """A network without a classifier, whose output is the embedding (B, 32)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))


@pytest.fixture(scope="module")
def trained_run() -> tuple[dict[str, Any], Tapped]:
    """An embedder without classifier, trained by the absolute form on some of the digits."""
    result = train(embedder, "digits", per_class=80, epochs=30, optimizer="Adam", lr=3e-3, **SHORT)
    return result.metrics, result.model


def test_clusters_become_the_classes(trained_run: tuple[dict[str, Any], Tapped]) -> None:
    metrics, student = trained_run
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = Tapped(embedder(), student.mean.flatten().tolist(), student.std.flatten().tolist())
    before = evaluate(untrained, open_data("digits"), task="clustering")
    assert metrics["task"] == "clustering"
    assert metrics["main"] == "nmi"
    assert metrics["test"]["nmi"] > 0.8
    assert metrics["test"]["nmi"] > before["nmi"] + 0.1
    assert metrics["selected"]["validation_nmi"] > 0.8


def test_single_threshold_finds_number_of_classes(trained_run: tuple[dict[str, Any], Tapped]) -> None:
    test = trained_run[0]["test"]
    assert 8 <= test["multicut_clusters"] <= 13
    assert test["multicut_nmi"] > 0.8


def reference_loss(features: Tensor, batch: Any, form: str, alpha: float, beta: float) -> float:
    """The mean over the triplets that the term draws with the same random numbers."""
    positives, negatives, is_complete = draw_triplets(batch.targets)
    assert is_complete.all()
    total = 0.0
    for index, (p, n) in enumerate(zip(positives.tolist(), negatives.tolist(), strict=True)):
        d_ap = float((features[index] - features[p]).square().sum())
        d_an = float((features[index] - features[n]).square().sum())
        gap = max(d_ap - d_an + alpha, 0.0)
        total += {
            "relative": gap,
            "bounded": gap + max(d_ap - beta, 0.0),
            "absolute": max(alpha - d_an, 0.0) + max(d_ap - beta, 0.0),
        }[form]
    return total / len(features)


@pytest.mark.parametrize(("form", "alpha"), [("relative", 1.0), ("bounded", 1.0), ("absolute", 3.0)])
def test_loss_of_first_step(form: str, alpha: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """For a batch of the whole split, it is among the losses of many draws of triplets."""
    small_data = Data("tiny", tiny_data.classes, tiny_data.train.subset(torch.arange(8)), tiny_data.test)
    run = Run(small_data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=8, lr=1e-3), hardware=on_cpu)
    find("triplets")(run, form=form, samples_per_class=2, beta=0.0)
    batch = next(Batches(small_data.train, batch_size=8, seed=0, order=PK(2)).epoch(0))
    features = tiny_model(2).train().tap(batch.inputs, ("embedding",))["embedding"].detach()
    expected = {reference_loss(features, batch, form, alpha, 0.0) for _ in range(500)}
    assert min(expected) <= run.fits[0].history[0]["learners"]["student"]["triplets"] <= max(expected)


def test_batches_hold_several_samples_per_class(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=8), hardware=on_cpu)
    with pytest.raises(TutelageError, match="cannot hold 8 samples of each of two classes"):
        find("triplets")(run)
    find("triplets")(run, samples_per_class=4)


def test_classifier_is_not_trained(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    student = find("triplets")(run, samples_per_class=4)
    before, after = tiny_model(2).module.state_dict(), student.module.state_dict()
    assert torch.equal(before["fc.weight"], after["fc.weight"])
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


class Constant(nn.Module):
    """A network with the same embedding for all inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.layer(x.new_ones(len(x), 1))
        return embedding


@pytest.mark.parametrize("epochs", [1, 3])
def test_collapse_is_an_error_after_first_epoch(epochs: int, tiny_data: Data, on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: Tapped(Constant()), recipe=Recipe(epochs=epochs, batch_size=16), hardware=on_cpu)
    with pytest.raises(
        TutelageError, match=r"after epoch 1 all samples have the same embedding.*learning rate"
    ) as error:
        find("triplets")(run, samples_per_class=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"alpha": 1.0, "beta": 1.0}, {"nested": True}, {"samples_per_class": 1}, {"form": "hardest"}]
)
def test_margins_unsuitable_for_form_are_refused(
    settings: dict[str, Any], tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    run = Run(tiny_data, tiny_model, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    with pytest.raises(TutelageError) as error:
        find("triplets")(run, **settings)
    assert "\n" not in str(error.value)


def test_network_without_embedding_is_refused(tiny_data: Data, on_cpu: Hardware) -> None:
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    run = Run(tiny_data, lambda: Tapped(convolutional), recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    with pytest.raises(TutelageError, match="embedding") as error:
        find("triplets")(run, samples_per_class=4)
    assert "\n" not in str(error.value)


def test_embedding_without_trainable_weights_is_refused(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    """The embedding of a single linear layer, the input of the classifier, is the image itself."""
    run = Run(
        tiny_data,
        lambda: Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))),
        recipe=Recipe(epochs=1, batch_size=16),
        hardware=on_cpu,
    )
    with refused(
        "no weight that learner 'student' trains", "embedding", "a layer before that", 'roles={"embedding": ""}'
    ):
        find("triplets")(run, samples_per_class=4)


def test_stopped_run_resumes_exactly(tmp_path: Path, state_of: Any) -> None:
    def stop(record: Any) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    options = SHORT | {"per_class": 20, "epochs": 3}
    reference_run = train("resnet8x0.25", "digits", out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train("resnet8x0.25", "digits", out=tmp_path / "stopped", report=stop, **options)
    second_run = train("resnet8x0.25", "digits", out=tmp_path / "stopped", **options)
    for name, value in state_of(reference_run.model).items():
        assert torch.equal(value, state_of(second_run.model)[name])
    assert reference_run.metrics["test"] == second_run.metrics["test"]


def test_run_is_evaluated_by_its_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("resnet8x0.25", "digits", out=tmp_path / "run", per_class=20, epochs=1, **SHORT)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["tutelage", "evaluate", str(tmp_path / "run"), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    output = capsys.readouterr().out
    assert "multicut" in output
