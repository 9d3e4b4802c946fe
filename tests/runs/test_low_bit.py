"""The method low_bit: accuracy at few bits, where it starts, exact resume, files, export, Hinton's loss."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Command
from tests.models.test_export import needs_onnx
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.evaluation import accuracy, predict
from tutelage.methods import find
from tutelage.models.export import export_onnx
from tutelage.models.quantised import quantised_layers
from tutelage.models.surgery import applied_operations
from tutelage.models.surgery.quantise import apply as quantise
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.terms import labels_and_soft_targets
from tutelage.training import Learner, Run

Net = Callable[..., Tapped]
BRIEF = {"steps": 2, "per_class": 6}


def make_run(data: Data, make: Callable[[], Tapped], on_cpu: Hardware, teacher: Tapped, **recipe: Any) -> Run:
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.01, **recipe}
    return Run(data, make, [teacher], recipe=Recipe(**recipe), hardware=on_cpu, seed=3)


def rescaled(model: Tapped, seed: int) -> Tapped:
    """The same function: hidden channels times factors from 0.1 to 10, which the next layer divides by."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in model.module.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, following in itertools.pairwise(layers):
            factor = 10 ** (2 * torch.rand(len(layer.weight), generator=generator) - 1)
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            layer.bias.mul_(factor)  # type: ignore[union-attr]
            following.weight.div_(factor.view(1, -1, *(1,) * (following.weight.ndim - 2)))
    return model


def convolutions() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 12, 1), (12, 24, 2), (24, 24, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Tapped, Tapped]:
    """The data, a trained network, and the same function with channels of very different sizes."""
    data = replace(open_data("digits"), views=CropsAndFlips())
    hardware = Hardware(device="cpu", precision="float32", channels_last=False, workers=0)
    recipe = Recipe(epochs=10, batch_size=64, optimizer="Adam", lr=1e-2, weight_decay=0, schedule="cosine")
    run = Run(data, lambda: Tapped(convolutions(), *data.mean_std), recipe=recipe, hardware=hardware, seed=1)
    model = find("plain")(run).eval()
    return data, model, rescaled(model, 0)


def trained(digits: tuple[Data, Tapped, Tapped], on_cpu: Hardware, **settings: Any) -> tuple[float, Run, Tapped]:
    """Accuracy of the rescaled network at two bits, from two images of each class."""
    data, original, teacher = digits
    teacher = original if settings.pop("original", False) else teacher
    run = make_run(data, lambda: Tapped(convolutions(), *data.mean_std), on_cpu, teacher, epochs=10)
    settings = {"bits": 2, "per_class": 2, "steps": 20, **settings}
    student = find("low_bit")(run, **settings)
    return float(accuracy(run.predict(student, data.test), data.test.labels)), run, student


def test_groups_and_stages_recover_a_network_of_two_bits(digits: tuple[Data, Tapped, Tapped], on_cpu: Hardware) -> None:
    data, model, teacher = digits
    rounded = quantise(copy.deepcopy(teacher.module), torch.zeros(2, 1, 8, 8), bits=2)
    scores = {
        "float": float(accuracy(predict(model, data.test, device="cpu"), data.test.labels)),
        "rounded": float(accuracy(predict(Tapped(rounded, *data.mean_std), data.test, device="cpu"), data.test.labels)),
        "layer": trained(digits, on_cpu, groups=1)[0],
        "group": trained(digits, on_cpu)[0],
        "stage 1": trained(digits, on_cpu, block_share=1.0)[0],
    }
    assert scores["float"] > 0.93
    assert scores["group"] > scores["rounded"] + 0.2, scores
    assert scores["group"] > scores["layer"] + 0.1, scores
    assert scores["group"] > scores["stage 1"] + 0.05, scores
    assert scores["group"] > 0.6, scores


def test_eight_bits_keep_the_outputs(digits: tuple[Data, Tapped, Tapped], on_cpu: Hardware) -> None:
    data, teacher, _ = digits
    _, run, student = trained(digits, on_cpu, original=True, bits=8, activation_bits=8, joint_rate=1e-6, steps=2)
    first, second = (predict(model, data.test, device="cpu") for model in (student, teacher))
    assert float((first - second).square().mean() / second.var()) < 1e-2
    assert run.notes["start"] == "teacher"
    assert run.notes["samples"] == 20
    assert all(last <= first for first, last in run.notes["block_errors"].values())


def test_weights_are_rounded_and_can_be_used_without_the_operation(
    digits: tuple[Data, Tapped, Tapped], on_cpu: Hardware
) -> None:
    data = digits[0]
    _, run, student = trained(digits, on_cpu, bits=3, steps=2)
    plain = convolutions()
    state = student.module.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    expected = predict(student, data.test, device="cpu")
    assert torch.equal(predict(Tapped(plain, *data.mean_std), data.test, device="cpu"), expected)
    assert [len(layer.weight.unique()) <= 24 * 2**layer.bits for layer in quantised_layers(student.module).values()]
    assert len(plain[2].weight[0].unique()) <= 2**3  # type: ignore[index, union-attr]
    bits = run.notes["bits"]
    assert bits["weights"] == 12 * 9 * 8 + 24 * 12 * 9 * 3 + 24 * 24 * 9 * 3 + 240 * 8
    assert bits["total"] < bits["float"] / 5


@pytest.mark.parametrize(
    ("start", "width", "noted"), [("auto", 4, "teacher"), ("auto", 3, "initial"), ("initial", 4, "initial")]
)
def test_where_it_starts(
    start: str, width: int, noted: str, tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    run = make_run(tiny_data, lambda: tiny_model(2, width=width), on_cpu, trained_model())
    student = find("low_bit")(run, start=start, **BRIEF)
    assert run.notes["start"] == noted
    operations = [operation["operation"] for operation in applied_operations(student.module)]
    assert operations == (["fold", "quantise"] if noted == "teacher" else ["quantise"])
    assert len(run.fits) == (4 if noted == "teacher" else 1)
    assert isinstance(student.module.get_submodule("bn1"), nn.Identity if noted == "teacher" else nn.BatchNorm2d)


def test_norms_stay_frozen_without_folding(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    teacher = trained_model()
    student = find("low_bit")(make_run(tiny_data, lambda: tiny_model(2), on_cpu, teacher), fold=False, **BRIEF)
    before = teacher.module.state_dict()
    norms = {key: value for key, value in student.module.state_dict().items() if key.startswith("bn")}
    assert len(norms) == 10
    assert all(torch.equal(value, before[key]) for key, value in norms.items())


def test_another_network_is_refused(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    run = make_run(tiny_data, lambda: tiny_model(2, width=3), on_cpu, tiny_model(1))
    with refused("start=teacher", "another network", "start=initial"):
        find("low_bit")(run, start="teacher")
    with refused("bits", "8", "got 9"):
        find("low_bit")(run, bits=9)


@pytest.mark.parametrize("settings", [{"activation_bits": 4}, {"block_inputs": "quantised"}])
def test_resumed_after_any_epoch_it_is_the_same(
    settings: dict[str, Any],
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    trained_model: Net,
    on_cpu: Hardware,
    state_of: Any,
    changed: Any,
) -> None:
    class StoppedError(Exception):
        pass

    def train(folder: Path, stop: int | None) -> dict[str, Tensor]:
        epochs: list[Any] = []

        def report(record: Any) -> None:
            epochs.append(record)
            if len(epochs) == stop:
                raise StoppedError

        recipe = Recipe(epochs=2, batch_size=16, lr=0.01)
        parts: dict[str, Any] = {"recipe": recipe, "hardware": on_cpu, "seed": 3, "folder": folder, "report": report}
        run = Run(tiny_data, lambda: tiny_model(2), [trained_model()], **parts)
        state: dict[str, Tensor] = state_of(find("low_bit")(run, **BRIEF, **settings))
        return state

    whole = train(tmp_path / "whole", None)
    for stop in (1, 2, 3, 4):  # three blocks and the whole network
        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            train(folder, stop)
        torch.rand(stop)
        assert changed(whole, train(folder, None)) == set()


def test_it_is_reopened_packed_and_exported(tiny_npz: str, tmp_path: Path, run: Command) -> None:
    shared = {"data": tiny_npz, "batch_size": 16, "device": "cpu", "precision": "float32", "channels_last": False}
    shared |= {"workers": 0, "student": "resnet8x0.25", "lr": 0.05}
    execute(Config(method="plain", epochs=8, **shared), tmp_path / "teacher")
    settings = {"bits": 3, "activation_bits": 6, **BRIEF}
    config = Config(method="low_bit", teacher=str(tmp_path / "teacher"), epochs=2, settings=settings, **shared)
    result = execute(config, tmp_path / "run")
    data = open_data(tiny_npz)
    model = open_model(str(tmp_path / "run"), data)
    assert [operation["operation"] for operation in applied_operations(model.module)] == ["fold", "quantise"]
    expected = predict(result.model, data.test, device="cpu")
    assert torch.equal(predict(model, data.test, device="cpu"), expected)
    assert evaluate(model, data)["accuracy"] == result.metrics["test"]["accuracy"]

    file = tmp_path / "packed.safetensors"
    code, out, err = run("export", str(tmp_path / "run"), "--packed", str(file))
    assert code == 0, err
    assert f"{file}: {file.stat().st_size:,} bytes" in out
    packed = open_model(f"resnet8x0.25@{file}", data)
    assert torch.equal(predict(packed, data.test, device="cpu"), expected)
    assert file.stat().st_size < (tmp_path / "run" / "student.safetensors").stat().st_size


def test_onnxruntime_gives_the_same_logits(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware, tmp_path: Path
) -> None:
    onnxruntime = needs_onnx()
    run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, trained_model())
    student = find("low_bit")(run, bits=2, activation_bits=4, **BRIEF).eval()
    export_onnx(student, (1, 8, 8), tmp_path / "s.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), student(pixels).detach(), rtol=1e-4, atol=1e-4)


def test_quantised_students_learn_by_hintons_loss(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    """Quantisation-aware distillation in a method of one's own, under a teacher of another width."""
    run = make_run(tiny_data, lambda: tiny_model(2, width=6), on_cpu, trained_model(), epochs=30, lr=0.1)
    student = run.student()
    quantise(student.module, run.example(student), bits=2)
    student = student.rewrapped()
    before = float(accuracy(run.predict(student, tiny_data.test), tiny_data.test.labels))
    run.fit(Learner(student, run.frozen(*run.teachers()), labels_and_soft_targets(0.7)))
    after = float(accuracy(run.predict(student, tiny_data.test), tiny_data.test.labels))
    assert after > max(before, 0.25) + 0.3
    assert len(student.module.get_submodule("conv2").codes().unique()) <= 4  # type: ignore[operator]
