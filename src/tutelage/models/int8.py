"""INT8 versions of ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.ambient import default_settings
from tutelage.errors import TutelageError, one_line
from tutelage.files import atomic_write
from tutelage.models.export import quietly


@default_settings()
def quantise_onnx(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write an INT8 version of an ONNX file: weights and activations have 8 bits each, signed.

    Weights have a scale for each output channel. Activations have one for each tensor, from the smallest and the
    largest value that it takes for the given inputs. Operations after the first output, such as the calibration of
    probabilities, stay in float32. The inputs and outputs of the file are float32, and its metadata is kept.

    Args:
        source: a file of ``export_onnx``.
        target: the new file, which may be the same.
        batches: inputs (B, ...) as the network takes them, float32; a few hundred training samples.

    Raises:
        TutelageError: the extra ``onnx`` is not installed, there are no inputs, or the network cannot be quantised.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise TutelageError("ONNX needs the extra: pip install 'tutelage[onnx]'") from error

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The batches, as onnxruntime reads them."""

        def __init__(self, name: str) -> None:
            self.inputs: Iterator[dict[str, Any]] = ({name: batch.cpu().numpy()} for batch in batches)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; ``None`` after the last."""
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            with quietly():
                quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                graph = onnx.load(str(prepared)).graph
                quantize_static(
                    str(prepared),
                    str(quantised),
                    Reader(graph.input[0].name),
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=_after_output(graph),
                )
            model = onnx.load(str(quantised))
        except Exception as error:  # errors of onnx, onnxruntime and protobuf have no common class
            raise TutelageError(f"{source} cannot be quantised to INT8: {one_line(error)}") from error
        original = onnx.load(str(source), load_external_data=False)
        del model.metadata_props[:]
        model.metadata_props.extend(original.metadata_props)
        atomic_write(target, model.SerializeToString())


def _after_output(graph: Any) -> list[str]:
    """The names of the nodes that the first output does not depend on."""
    producers = {output: node for node in graph.node for output in node.output}
    before: set[str] = set()
    pending = [graph.output[0].name]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.name not in before:
            before.add(node.name)
            pending.extend(node.input)
    return [node.name for node in graph.node if node.name not in before]
