"""What the networks run on: device, precision, memory layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tutelage.config import Hardware
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning, one_line
from tutelage.models.modes import restore_state
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
    resolved: Hardware = hardware.replace(device=str(device), precision=precision, channels_last=channels_last)
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
        torch.zeros(1, device=device).cpu()  # a device without memory, such as meta, fails here
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TutelageError(f"device {name!r} cannot be used here: {one_line(error)}; try --device auto") from error
    return device


def autocast(hardware: Hardware) -> AbstractContextManager[object]:
    """The precision of a network's pass, as a context: the configured one, also inside another autocast."""
    kind, enabled = torch.device(hardware.device).type, hardware.precision == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)


def place(*models: Tapped, hardware: Hardware, example: Tensor) -> None:
    """Move models to the device and into the memory layout.

    A network that cannot run in channels-last memory, because it calls ``view`` on a map for instance, runs contiguous
    instead, with a warning, and with it all that are placed in the same call. Nothing else of a model changes.

    Args:
        models: those that share parts of one network, or one alone.
        hardware: resolved.
        example: raw inputs, on any device, for the passes that are tried; only images, (B, C, H, W), have that layout.
    """
    device = torch.device(hardware.device)
    for model in models:
        model.to(device)
    if not hardware.channels_last or example.ndim != 4:
        return
    example = example.to(device).to(memory_format=torch.channels_last)
    _lay_out(models, contiguous=any(model.contiguous for model in models))
    error = next(filter(None, (_failure(model, example, hardware) for model in models)), None)
    if error is None:
        return
    _lay_out(models, contiguous=True)
    if any(_failure(model, example, hardware) for model in models):
        _lay_out(models, contiguous=False)  # it cannot run at all, which the dry run explains
        return
    warnings.warn(
        f"{type(models[0].module).__name__} cannot run in channels-last memory ({one_line(error)}) and runs in "
        "contiguous memory; use reshape or flatten in its forward, or set channels_last=False (--no-channels-last)",
        TutelageWarning,
        stacklevel=2,
    )


def _lay_out(models: Sequence[Tapped], *, contiguous: bool) -> None:
    for model in models:
        model.contiguous = contiguous
        layout = torch.contiguous_format if contiguous else torch.channels_last
        model.to(memory_format=layout)  # type: ignore[call-overload]


def _failure(model: Tapped, example: Tensor, hardware: Hardware) -> Exception | None:
    """What a pass in eval mode, or in train mode for a model that is to be trained, fails with."""
    with restore_state(model), torch.no_grad(), autocast(hardware):
        trained = any(parameter.requires_grad for parameter in model.parameters())
        for training in (False, True) if trained else (False,):
            try:
                model.train(training).tap(example, ())
            except (*NETWORK_ERRORS, TutelageError) as error:
                return error
    return None
