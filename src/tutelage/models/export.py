"""Export of a trained network to ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.modality import Modality, Pixels
from tutelage.errors import TutelageError, one_line
from tutelage.files import atomic_write
from tutelage.models.calibration import Calibration
from tutelage.models.tapped import Tapped


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress the exporter's own output, warnings and log messages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


class _Calibrated(nn.Module):
    """Pixels to logits, calibrated probabilities and membership in the prediction set."""

    def __init__(self, model: Tapped, calibration: Calibration) -> None:
        super().__init__()
        self.model, self.calibration = model, calibration

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model(pixels)
        return logits, self.calibration.probabilities(logits), self.calibration.in_set(logits)


@default_settings()
def export_onnx(
    model: Tapped,
    input_shape: tuple[int, ...],
    path: Path,
    *,
    modality: Modality = Pixels(),  # noqa: B008 - a frozen value
    classes: Sequence[str] = (),
    calibration: Calibration | None = None,
) -> None:
    """Write a network as one ONNX file: ``pixels`` (batch, C, H, W) float32 in [0, 1] to ``logits`` (batch, classes).

    Inputs of another modality have its name and dtype, such as ``tokens`` (batch, T) int64. If the network's output has
    a role such as ``embedding``, the output has this name instead of ``logits``. The batch size is dynamic. The file's
    metadata holds ``image_shape``, or ``input_shape`` of other inputs, and, for logits, ``classes`` as JSON.

    Args:
        model: its normalisation becomes part of the file.
        input_shape: of one input; (C, H, W) of images.
        path: the file.
        modality: the kind of the inputs.
        classes: the class names, in the order of the logits.
        calibration: adds the outputs ``probabilities`` (batch, classes), calibrated, and ``in_set`` (batch, classes)
            bool, and the entry ``calibration`` of the metadata.

    Raises:
        TutelageError: the extra ``onnx`` is not installed, or the network cannot be exported.
    """
    try:
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ImportError as error:
        raise TutelageError("ONNX needs the extra: pip install 'tutelage[onnx]'") from error
    model = copy.deepcopy(model).eval().cpu()
    for module in model.modules():
        fix_weights = getattr(module, "fix_weights", None)  # of a layer that computes them in each forward pass
        if callable(fix_weights):
            fix_weights()
    output = next((role for role, tap in model.taps.items() if not str(tap)), "logits")
    outputs = [output] if calibration is None else [output, "probabilities", "in_set"]
    network = model if calibration is None else _Calibrated(model, calibration)
    try:
        with quietly():
            program = torch.onnx.export(
                network,
                (modality.example(2, input_shape),),
                dynamo=True,
                input_names=[modality.input_name],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        if program is None:
            raise RuntimeError("the exporter returned nothing")
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        reason = one_line(error.__cause__ or error)  # the exporter wraps the error in advice about itself
        raise TutelageError(f"{type(model.module).__name__} cannot be exported to ONNX: {reason}") from error
    proto = program.model_proto
    metadata: dict[str, object] = {"classes": list(classes)} if output == "logits" else {}
    metadata["image_shape" if len(input_shape) == 3 else "input_shape"] = list(input_shape)
    if calibration is not None:
        metadata["calibration"] = calibration.model_dump()
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    atomic_write(path, proto.SerializeToString())
