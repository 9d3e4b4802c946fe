"""What the networks run on: device, precision, memory layout."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from tutelage.config import Hardware
from tutelage.errors import TutelageError, one_line
from tutelage.models.tapped import Tapped
from tutelage.training.processes import Processes


def resolve(hardware: Hardware, processes: Processes | None = None) -> Hardware:
    """The same with every ``auto`` decided.

    Channels-last on GPUs and CPUs, whose convolutions are faster in it. bfloat16 where there are instructions for it,
    without which it costs many times what float32 does.
    """
    device = _device(hardware.device, processes)
    precision = hardware.precision
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16(device) else "float32"
    channels_last = device.type in ("cuda", "cpu") if hardware.channels_last is None else hardware.channels_last
    resolved: Hardware = hardware.but(device=str(device), precision=precision, channels_last=channels_last)
    return resolved


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False


def _device(name: str, processes: Processes | None) -> torch.device:
    if processes is not None and processes.device is not None:
        return processes.device
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TutelageError(f"device {name!r} cannot be used here: {one_line(error)}; try --device auto") from error
    return device


def autocast(hardware: Hardware) -> AbstractContextManager[object]:
    """The precision of a network's pass, as a context: the configured one, also inside another autocast."""
    kind, enabled = torch.device(hardware.device).type, hardware.precision == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)


def place(model: Tapped, hardware: Hardware) -> Tapped:
    """Move a model to the device and into the memory layout."""
    model.to(torch.device(hardware.device))
    if hardware.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
