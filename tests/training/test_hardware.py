"""The default precision of each device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.errors import TutelageWarning
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, fit
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution
from tutelage.training.hardware import autocast_dtype, grad_scaler, place, resolve
from tutelage.training.processes import Processes


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({"avx2": True, "avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_cpus_with_bfloat16_instructions_use_bfloat16(
    instructions: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert resolve(Hardware(device="cpu")).precision == precision
    assert resolve(Hardware(device="cpu", precision="float32")).precision == "float32"
    with nullcontext() if precision == "bfloat16" else pytest.warns(TutelageWarning, match="--precision float32"):
        assert resolve(Hardware(device="cpu", precision="bfloat16")).precision == "bfloat16"


def test_cpus_of_unknown_capabilities_use_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve(Hardware(device="cpu")).precision == "float32"


@pytest.mark.parametrize("emulated", [True, False])
def test_gpus_use_bfloat16_unless_they_emulate_it(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr("tutelage.training.hardware._device", lambda *_: torch.device("cuda"))
    assert resolve(Hardware()).precision == ("float32" if emulated else "bfloat16")


def test_bfloat16_on_a_gpu_without_it_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("tutelage.training.hardware._device", lambda *_: torch.device("cuda"))
    with pytest.warns(TutelageWarning, match="--precision float16"):
        resolve(Hardware(precision="bfloat16"))
    assert resolve(Hardware(precision="float16")).precision == "float16"


def test_float16_is_refused_on_a_processor(refused: Any) -> None:
    with refused("float16", "the device is cpu", "--precision float32"):
        resolve(Hardware(device="cpu", precision="float16"))


# --- float16. torch's scaler and autocast also run on a processor, where the recipe refuses them because they are slow.


def half(folder: Path | None = None) -> Execution:
    hardware = Hardware(device="cpu", precision="float16", channels_last=False, workers=0)
    return Execution(hardware, Processes(), Checkpoints(folder) if folder else None)


def trained(model: Tapped, data: Data, execution: Execution, stop: int = 0, **recipe: Any) -> dict[str, torch.Tensor]:
    fit(
        Learner(model, None, {"ce": CrossEntropy()}),
        data=data,
        recipe=Recipe(**{"epochs": 3, "batch_size": 16, "lr": 0.02} | recipe),
        execution=execution,
        until=(lambda history: len(history) == stop) if stop else None,
        seed=1,
    )
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_scaled_losses_train_as_unscaled_ones(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    assert autocast_dtype(half().hardware) == torch.float16
    assert grad_scaler(half().hardware).is_enabled()
    assert not grad_scaler(on_cpu).is_enabled()
    for recipe in ({}, {"clip": 0.1}, {"accumulate": 2, "clip": 0.1}):
        full = trained(tiny_model(), tiny_data, Execution.on(on_cpu), **recipe)
        scaled = trained(tiny_model(), tiny_data, half(), **recipe)
        for name, value in full.items():
            torch.testing.assert_close(scaled[name], value, rtol=0.05, atol=0.02, msg=f"{recipe}: {name}")


def test_overflowing_gradients_skip_the_step_and_the_scale_is_resumed(
    tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scale overflows: the weights stay finite, the scale is halved, and a resumed fit has the same scale."""
    monkeypatch.setattr("tutelage.training.loop.grad_scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**30))
    whole = trained(tiny_model(), tiny_data, half())
    trained(tiny_model(), tiny_data, half(tmp_path), stop=1)
    state = Checkpoints(tmp_path).load()
    assert state is not None
    scale = state["learners"][0]["scaler"]["scale"]
    assert scale < 2.0**30
    assert changed(whole, trained(tiny_model(5), tiny_data, half(tmp_path))) == set()
    assert all(value.isfinite().all() for value in whole.values())


@pytest.mark.parametrize(
    ("capability", "convolution", "contiguous"),
    [
        ("AVX2", nn.Conv2d(7, 8, 1, stride=2), True),
        ("AVX2", nn.Conv2d(7, 8, 1, stride=(1, 2)), True),
        ("AVX2", nn.Conv2d(8, 8, 1, stride=2), False),
        ("AVX2", nn.Conv2d(7, 8, 1), False),
        ("AVX2", nn.Conv2d(7, 8, 3, stride=2), False),
        ("AVX512", nn.Conv2d(7, 8, 1, stride=2), False),
    ],
)
def test_convolutions_with_wrong_gradients_in_channels_last_memory_run_in_contiguous_memory(
    capability: str, convolution: nn.Conv2d, contiguous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = Tapped(nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    place(model, hardware=resolve(Hardware(device="cpu")), example=torch.zeros(2, convolution.in_channels, 8, 8))
    assert model.contiguous == contiguous
