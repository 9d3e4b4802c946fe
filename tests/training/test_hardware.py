"""The default precision of each device."""

from __future__ import annotations

import pytest
import torch

from tutelage.config import Hardware
from tutelage.training.hardware import resolve


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
