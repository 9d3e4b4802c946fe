"""A trained network for other runtimes."""

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

from tutelage.ambient import default_settings
from tutelage.errors import TutelageError, one_line
from tutelage.files import atomic_write
from tutelage.models.tapped import Tapped


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's notices about itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


@default_settings()
def export_onnx(model: Tapped, image_shape: tuple[int, int, int], path: Path, *, classes: Sequence[str] = ()) -> None:
    """Write a network as one ONNX file: ``pixels`` (batch, C, H, W) float32 in [0, 1] to ``logits`` (batch, classes).

    The output of a network that is the role ``embedding`` as a whole is called that, (batch, D). The batch size is
    free. The file's metadata holds ``image_shape`` and, with logits, ``classes`` as JSON.

    Args:
        model: with its normalisation, which becomes part of the file.
        image_shape: (C, H, W) of the images.
        path: the file.
        classes: their names, in the order of the logits.

    Raises:
        TutelageError: without the extra ``onnx``, or when the network cannot be exported.
    """
    try:
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ImportError as error:
        raise TutelageError("ONNX needs the extra: pip install 'tutelage[onnx]'") from error
    model = copy.deepcopy(model).eval().cpu()
    output = next((role for role, tap in model.taps.items() if not str(tap)), "logits")
    try:
        with _quietly():
            program = torch.onnx.export(
                model,
                (torch.zeros(2, *image_shape),),
                dynamo=True,
                input_names=["pixels"],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        if program is None:
            raise RuntimeError("the exporter gave nothing")
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        why = one_line(error.__cause__ or error)  # the exporter wraps what went wrong in advice about itself
        raise TutelageError(f"{type(model.module).__name__} cannot be exported to ONNX: {why}") from error
    proto = program.model_proto
    about: dict[str, object] = {"classes": list(classes)} if output == "logits" else {}
    about["image_shape"] = list(image_shape)
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    atomic_write(path, proto.SerializeToString())
