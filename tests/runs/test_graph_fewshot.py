"""The method graph_fewshot: its stages, exact resume, held-out classes, and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.methods.graph_fewshot.images import Net
from tutelage import train
from tutelage.cli import main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, NoAugmentation, Split
from tutelage.data.conditions import SymmetricNoise
from tutelage.data.modality import Vectors
from tutelage.methods import find
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.tasks import few_shot
from tutelage.training import Run

CPU: dict[str, Any] = {"device": "cpu", "precision": "float32", "channels_last": False, "workers": 0}


@pytest.fixture(autouse=True)
def fewer_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 episodes instead of 600."""
    monkeypatch.setattr(few_shot, "EPISODES", 40)


@pytest.fixture
def novel(tiny_data: Data) -> Data:
    """``tiny_data`` with the classes c and d in the test split only."""
    classes = tiny_data.classes

    def split_of(part: Split, *labels: int) -> Split:
        return part.subset(torch.isin(part.labels, torch.tensor(labels)).nonzero().squeeze(1))

    return Data(
        "novel",
        classes,
        split_of(tiny_data.train, 0, 1),
        split_of(tiny_data.train, 2, 3),
        split_of(tiny_data.test, 0, 1),
    )


@pytest.mark.parametrize("rotation", ["both", "first", "never"])
@pytest.mark.parametrize("mix_share", [0.0, 0.5, 1.0])
def test_losses_of_each_stage(rotation: str, mix_share: float, novel: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(novel, lambda: tiny_model(2), recipe=Recipe(epochs=4, batch_size=8, lr=0.01), hardware=on_cpu)
    find("graph_fewshot")(run, rotation=rotation, mix_share=mix_share)
    rotated = {"rotated_ce", "rotation"}
    first = rotated if rotation != "never" else {"ce"}
    second = {"mixed_ce"} | (rotated if rotation == "both" else set())
    expected = {0.0: [(4, first)], 0.5: [(2, first), (2, second)], 1.0: [(4, second)]}[mix_share]
    metrics = {"validation_accuracy_1_shot"}
    stages = [(len(f.history), set(f.history[0]["learners"]["student"]) - metrics) for f in run.fits]
    assert stages == expected
    pass_factors = {"rotated_ce": 4, "ce": 1, "mixed_ce": 1}
    passes = [sum(pass_factors[name] for name in terms if name in pass_factors) for _, terms in expected]
    if "mixed_ce" in expected[-1][1] and rotation == "both":
        passes[-1] = 2  # the batch, and a quarter of it in four rotations
    samples = 8 * (len(novel.train) // 8)
    passes_per_sample = [f.history[0]["forward_passes"]["student"] / samples for f in run.fits]
    assert passes_per_sample == pytest.approx(passes)


def test_backbone_is_saved_and_loaded_without_head(novel: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.01, "out": tmp_path / "run"}
    fixed_options: dict[str, Any] = {**CPU, "method": "graph_fewshot"}
    result = train("resnet8x0.25", novel, **options, **fixed_options)
    network = result.model.module
    assert applied_operations(network) == [{"operation": "headless"}]
    assert not any(name.startswith("fc") for name in network.state_dict())
    assert result.metrics["task"] == "few_shot"
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        embedding = result.model.tap(pixels, ("embedding", "stage3"))
        assert torch.equal(result.model(pixels), embedding["embedding"])
        assert result.model(pixels).shape == (3, 16)
        torch.testing.assert_close(embedding["stage3"].mean((2, 3)), embedding["embedding"])
        second_run = train("resnet8x0.25", novel, **options, **fixed_options)
        assert torch.equal(second_run.model(pixels), result.model(pixels))
    assert second_run.metrics == result.metrics
    assert result.metrics["test"]["accuracy_1_shot"] is not None


def test_stopped_run_resumes_exactly(
    novel: Data, tiny_model: Net, on_cpu: Hardware, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    def train_method(folder: Path, stop: int | None) -> Tapped:
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise KeyboardInterrupt

        recipe = Recipe(epochs=4, batch_size=8, lr=0.01)
        run = Run(novel, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, folder=folder, report=report)
        return find("graph_fewshot")(run)

    expected_state = state_of(train_method(tmp_path / "whole", None))
    for stop in (1, 2, 3):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            train_method(folder, stop)
        torch.rand(stop)
        assert changed(expected_state, state_of(train_method(folder, None))) == set()


def test_second_stage_continues_heads_of_first(novel: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """With a learning rate of 0 the heads keep their initial weights, which are drawn once."""
    run = Run(novel, lambda: tiny_model(2), recipe=Recipe(epochs=4, batch_size=8, lr=1e-12), hardware=on_cpu)
    find("graph_fewshot")(run)
    first, second = (fit_result.history[0]["learners"]["student"]["rotation"] for fit_result in run.fits)
    assert first == pytest.approx(second, abs=0.15)


def test_held_out_classes_are_not_trained_on(novel: Data, tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    inputs: list[Tensor] = []

    def student() -> Tapped:
        model = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)))
        model.module.register_forward_pre_hook(
            lambda module, arguments: inputs.append(arguments[0]) if module.training else None
        )
        return model

    data = replace(tiny_data, views=NoAugmentation())
    run = Run(data, student, recipe=Recipe(epochs=2, batch_size=8, lr=0.01), hardware=on_cpu)
    find("graph_fewshot")(run, rotation="never", mix_share=0.0, validation_classes=0.5)
    rows = torch.cat(inputs).mul(255).round().to(torch.uint8).flatten(1)
    images = tiny_data.train.inputs.flatten(1)  # type: ignore[union-attr]
    classes = {int(tiny_data.train.labels[(images == row).all(1)][0]) for row in rows}
    assert len(classes) == 2
    assert run.fits[0].history[-1]["learners"]["student"]["validation_accuracy_1_shot"] > 0
    with refused("validation_classes=0.9 of 4 classes of tiny are 4", "choose another share"):
        find("graph_fewshot")(Run(tiny_data, student, hardware=on_cpu), validation_classes=0.9)


def test_unsuitable_data_is_refused(novel: Data, on_cpu: Hardware, tiny_model: Net, refused: Any) -> None:
    single = replace(novel, train=novel.train.subset((novel.train.labels == 1).nonzero().squeeze(1)))
    with refused("novel has 1 with labels", "2 training classes or more"):
        find("graph_fewshot")(Run(single, tiny_model, hardware=on_cpu))
    vectors = Split.of(torch.rand(8, 5), torch.arange(8) % 2, Vectors())
    data = Data("vectors", ("a", "b"), vectors, vectors)
    net = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    with refused("rotations need square images", "vectors of shape (5,)", "rotation=never"):
        find("graph_fewshot")(Run(data, lambda: Tapped(net), hardware=on_cpu))
    run = Run(data, lambda: Tapped(net), recipe=Recipe(epochs=2, batch_size=4, lr=0.1), hardware=on_cpu)
    find("graph_fewshot")(run, rotation="never")  # mixed at the input


def test_rotations_and_classes_are_learned(novel: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(novel, lambda: tiny_model(2), recipe=Recipe(epochs=24, batch_size=8, lr=0.1), hardware=on_cpu)
    find("graph_fewshot")(run, mix_share=0.25)
    first, last = (run.fits[0].history[layer]["learners"]["student"] for layer in (0, -1))
    assert last["rotated_ce"] < 0.5 * first["rotated_ce"]
    assert run.fits[1].history[-1]["learners"]["student"]["mixed_ce"] < float(np.log(2))


def test_command_line_evaluates_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["tutelage", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    run = str(tmp_path / "run")
    hardware_options = ["--device", "cpu", "--precision", "float32", "--workers", "0", "--no-augment"]
    training_options = ["--model", "resnet8x0.25", "--method", "graph_fewshot", "--per-class", "12", "--epochs", "2"]
    command("train", *training_options, *hardware_options, "--out", run)
    text = command("evaluate", run, "--device", "cpu")
    for name in ("linear 1 shot", "graph 1 shot half width", "inductive 5 shot", "inductive graph 1 shot"):
        assert name in text
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    command("export", run, "--onnx", str(tmp_path / "net.onnx"))
    model = onnx.load(tmp_path / "net.onnx")
    assert [output.name for output in model.graph.output] == ["embedding"]
    assert {entry.key for entry in model.metadata_props} == {"image_shape"}


def test_test_split_of_novel_classes_needs_a_suitable_task(
    novel: Data, on_cpu: Hardware, tiny_model: Net, refused: Any
) -> None:
    with refused("2 of the 4 classes of novel have no training sample", "choose a method for few_shot or clustering"):
        train("resnet8x0.25", novel, epochs=1, batch_size=8, **CPU)
    with refused("would give training samples the class 'c'", "leave the noise out"):
        SymmetricNoise(0.9)(novel)
    assert train(
        "resnet8x0.25", novel, method="triplets", settings={"samples_per_class": 4}, epochs=1, batch_size=8, **CPU
    ).metrics


def test_a_folder_with_novel_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for layer in ("train/a", "train/b", "val/c", "val/d", "novel/e", "novel/f"):
        (tmp_path / layer).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(generator.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / layer / f"{number}.png")
    result = train("resnet8x0.25", f"folder:{tmp_path}", method="graph_fewshot", epochs=2, batch_size=4, **CPU)
    assert result.metrics["data"]["counts"]["test"] == [0, 0, 0, 0, 6, 6]
    assert result.metrics["test"]["graph_1_shot"] is not None
    assert "validation_accuracy_1_shot" in result.metrics["selected"]
