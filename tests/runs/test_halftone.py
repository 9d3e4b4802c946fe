"""The method halftone: its fits, what the network sees, its start, and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.evaluation import evaluate_attacks
from tutelage.methods import find
from tutelage.methods.halftone.diffusion import KERNELS, diffused, nearest_level
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.training import Run

Net = Callable[..., Tapped]


def make_run(data: Data, make: Callable[[], Tapped], on_cpu: Hardware, *teachers: Tapped, epochs: int = 1) -> Run:
    return Run(data, make, teachers, recipe=Recipe(epochs=epochs, batch_size=16, lr=0.05), hardware=on_cpu, seed=3)


def is_binary(images: Tensor) -> Tensor:
    """Which images (B, ...) of pixels have the values 0 and 1 alone."""
    return ((images - images.round()).abs() < 1e-4).flatten(1).all(1)


@pytest.mark.parametrize(("training", "share"), [("hybrid", 0.5), ("halftone", 1.0), ("plain", 0.0)])
def test_what_the_network_sees(training: str, share: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """Intensities in the first fit, the share of dots in the second, dots alone in evaluation."""
    seen: list[tuple[bool, Tensor]] = []

    def make() -> Tapped:
        model = tiny_model(2)
        conv = model.module.get_submodule("conv1")
        conv.register_forward_pre_hook(
            lambda layer, inputs: seen.append((layer.training, is_binary(inputs[0] * model.std + model.mean)))
        )
        return model

    run = make_run(tiny_data, make, on_cpu)
    model = find("halftone")(run, training=training)
    trained = [binary for training_mode, binary in seen if training_mode and len(binary) == 16]
    steps = len(trained) // 2
    assert len(run.fits) == 2
    assert not torch.cat(trained[:steps]).any()
    assert all(float(binary.float().mean()) == share for binary in trained[-2:])
    seen.clear()
    model.eval()(tiny_data.test.inputs.permute(0, 3, 1, 2) / 255)  # type: ignore[union-attr]
    assert torch.cat([binary for _, binary in seen]).all()


def test_the_deployed_network_is_the_classifier_of_the_halftone(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    model = find("halftone")(make_run(tiny_data, lambda: tiny_model(2), on_cpu)).eval()
    images = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    dots, _ = diffused(images, KERNELS["floyd_steinberg"], nearest_level)
    bare = tiny_model(2)
    bare.module.load_state_dict(model.module.state_dict())
    torch.testing.assert_close(model(images), bare.eval()(dots), rtol=1e-4, atol=1e-4)


def test_the_start_from_a_teacher_and_soft_targets(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    teacher = trained_model()
    run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, teacher)
    run.recipe = run.recipe.replace(lr=1e-9, weight_decay=0.0)
    model = find("halftone")(run, start="teacher", alpha=0.5)
    assert len(run.fits) == 1
    assert {"ce", "kd"} <= run.fits[0].history[-1]["learners"]["student"].keys()
    for name, value in teacher.module.named_parameters():
        torch.testing.assert_close(model.module.get_parameter(name), value, rtol=0, atol=1e-6)
    initial = make_run(tiny_data, lambda: tiny_model(2), on_cpu)
    find("halftone")(initial, start="initial")
    assert len(initial.fits) == 1
    other = make_run(tiny_data, lambda: tiny_model(2, width=3), on_cpu, teacher)
    with refused("start=teacher", "another network", "start=trained"):
        find("halftone")(other, start="teacher")
    with refused("needs a teacher"):
        find("halftone")(make_run(tiny_data, lambda: tiny_model(2), on_cpu), alpha=0.5)


def test_invalid_settings_are_refused_before_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    with refused("operator", "dots"):
        find("halftone").check({"operator": "dots"})
    with refused("factor", "0"):
        find("halftone").check({"factor": 0})


def test_it_learns_and_is_reopened_with_its_front(tiny_npz: str, tmp_path: Path) -> None:
    config = Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="halftone",
        settings={"operator": "jarvis", "factor": 2},
        epochs=14,
        batch_size=16,
        lr=0.05,
        device="cpu",
        precision="float32",
        channels_last=False,
        workers=0,
    )
    result = execute(config, tmp_path / "run")
    data = open_data(tiny_npz)
    model = open_model(str(tmp_path / "run"), data)
    assert result.metrics["test"]["accuracy"] > 0.8
    assert applied_operations(model.module)[0]["kind"] == "halftone"
    assert evaluate(model, data)["accuracy"] == result.metrics["test"]["accuracy"]
    report = evaluate_attacks(model, data.test, ["pgd:0.3", "pgd:0.3:bpda=none"], workers=0)
    assert not report.results["pgd:0.3"].refusal
    assert report.results["pgd:0.3"].accuracy < 0.5 * result.metrics["test"]["accuracy"]  # type: ignore[operator]
    assert "100%" in report.results["pgd:0.3:bpda=none"].refusal


def test_the_command_trains_and_attacks_it(run: Any, tiny_npz: str, tmp_path: Path) -> None:
    options = f"--data {tiny_npz} --device cpu --batch-size 16"
    code, _, err = run(
        *f"train {options} --model resnet8x0.25 --method halftone --epochs 2 --out {tmp_path / 'h'}".split()
    )
    assert code == 0, err
    code, out, err = run(*f"evaluate {tmp_path / 'h'} --attacks pgd:0.1,pgd:0.1:bpda=none --device cpu".split())
    assert code == 0, err
    assert "pgd:0.1:bpda=none: refused" in out
