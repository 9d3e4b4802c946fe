"""Device, precision and memory format of the networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tutelage.config import Hardware
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning, one_line
from tutelage.models.modes import restore_state
from tutelage.models.tapped import Tapped
from tutelage.training.processes import Processes


def resolve(hardware: Hardware, processes: Processes | None = None) -> Hardware:
    """Replace every ``auto``.

    Channels-last on GPUs and CPUs, whose convolutions are faster in it. bfloat16 if the hardware has instructions for
    it; without them it is many times slower than float32, and if it is requested there is a warning.

    Raises:
        TutelageError: there is no such device, or float16 is requested on another device than a CUDA GPU.
    """
    device = _device(hardware.device, processes)
    precision = hardware.precision
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16(device) else "float32"
    elif precision == "bfloat16" and device.type in ("cpu", "cuda") and not _has_bfloat16(device):
        kind, other = ("processor", "float32") if device.type == "cpu" else ("GPU", "float16")
        warnings.warn(
            f"this {kind} has no instructions for bfloat16, which is many times slower here; use --precision {other}",
            TutelageWarning,
            stacklevel=1,  # so that it is shown once, whoever resolves the hardware
        )
    elif precision == "float16" and device.type != "cuda":
        raise TutelageError(f"float16 is for CUDA GPUs, and the device is {device}; use --precision float32 or auto")
    channels_last = device.type in ("cuda", "cpu") if hardware.channels_last is None else hardware.channels_last
    resolved: Hardware = hardware.replace(device=str(device), precision=precision, channels_last=channels_last)
    return resolved


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Older versions of torch do not have this function.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
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


def autocast_dtype(hardware: Hardware) -> torch.dtype | None:
    """The dtype of autocast; ``None`` for float32."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(hardware.precision)


def autocast(hardware: Hardware) -> AbstractContextManager[object]:
    """A context in which networks run in the configured precision, also inside another autocast."""
    dtype = autocast_dtype(hardware)
    return torch.autocast(torch.device(hardware.device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def grad_scaler(hardware: Hardware) -> torch.amp.GradScaler:
    """A scaler of losses, whose gradients would be rounded to 0 in float16; in other precisions it does nothing."""
    return torch.amp.GradScaler(torch.device(hardware.device).type, enabled=hardware.precision == "float16")


def place(*models: Tapped, hardware: Hardware, example: Tensor) -> None:
    """Move models to the device and into the memory format.

    A network that cannot run in channels-last memory, for example because it calls ``view`` on a feature map, runs in
    contiguous memory, with a warning, and so do all models of the same call. So do, without a warning, networks with a
    convolution whose gradient oneDNN computes wrongly in channels-last memory. Nothing else of a model changes.

    Args:
        models: one model, or several that share submodules.
        hardware: resolved.
        example: raw inputs, on any device, for trial passes; only images, (B, C, H, W), use channels-last.
    """
    device = torch.device(hardware.device)
    for model in models:
        model.to(device)
    if not hardware.channels_last or example.ndim != 4:
        return
    example = example.to(device).to(memory_format=torch.channels_last)
    _lay_out(models, contiguous=any(model.contiguous or _overruns(model, device) for model in models))
    error = next(filter(None, (_failure(model, example, hardware) for model in models)), None)
    if error is None:
        return
    _lay_out(models, contiguous=True)
    if any(_failure(model, example, hardware) for model in models):
        _lay_out(models, contiguous=False)  # it cannot run at all; the dry run reports why
        return
    warnings.warn(
        f"{type(models[0].module).__name__} cannot run in channels-last memory ({one_line(error)}) and runs in "
        "contiguous memory; use reshape or flatten in its forward, or set channels_last=False (--no-channels-last)",
        TutelageWarning,
        stacklevel=2,
    )


def _overruns(model: nn.Module, device: torch.device) -> bool:
    """Whether a convolution writes past its memory in the backward pass, if the memory is channels-last.

    With AVX2, oneDNN does so for 1x1 convolutions with a stride and fewer than 8 input channels: their gradients are
    wrong, and the process can crash (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    return any(
        module.kernel_size == (1, 1) and module.stride != (1, 1) and module.groups == 1 and module.in_channels < 8
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    )


def _lay_out(models: Sequence[Tapped], *, contiguous: bool) -> None:
    for model in models:
        model.contiguous = contiguous
        layout = torch.contiguous_format if contiguous else torch.channels_last
        model.to(memory_format=layout)  # type: ignore[call-overload]


def _failure(model: Tapped, example: Tensor, hardware: Hardware) -> Exception | None:
    """The error of a pass in eval mode, and in train mode if the model is trained; ``None`` if there is none."""
    with restore_state(model), torch.no_grad(), autocast(hardware):
        trained = any(parameter.requires_grad for parameter in model.parameters())
        for training in (False, True) if trained else (False,):
            try:
                model.train(training).tap(example, ())
            except (*NETWORK_ERRORS, TutelageError) as error:
                return error
    return None
