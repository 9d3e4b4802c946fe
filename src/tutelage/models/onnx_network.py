"""A network in an ONNX file, as a module that onnxruntime computes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError


class OnnxNetwork(nn.Module):
    """The first output of an ONNX file for a batch of inputs, computed on the CPU, without gradients.

    Args:
        path: the file; it has one input.
        threads: that compute one operation; by default as many as torch uses.

    Raises:
        TutelageError: the extra ``onnx`` is not installed, or onnxruntime cannot open the file.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise TutelageError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from error
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to the first output (B, ...), on the device of the inputs."""
        (output,) = self._session.run([self._output], {self._input: inputs.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(output).to(inputs.device)


def import_onnxruntime() -> ModuleType:
    """The package onnxruntime.

    Raises:
        TutelageError: the extra ``onnx`` is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise TutelageError("ONNX needs the extra: pip install 'tutelage[onnx]'") from error
    return cast(ModuleType, onnxruntime)
