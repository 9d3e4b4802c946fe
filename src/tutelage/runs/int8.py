"""Making an INT8 version of an exported network, and comparing the two."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.data import Data
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import latency
from tutelage.models.calibration import Calibration
from tutelage.models.export import export_onnx
from tutelage.models.int8 import quantise_onnx
from tutelage.models.onnx_network import OnnxNetwork
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, Metric, Task

SAMPLES = 512  # training samples that give the ranges of the activations


@dataclass(frozen=True, slots=True)
class Measured:
    """One ONNX file: its main metric (NaN without labels), its size in bytes and its latency in milliseconds."""

    score: float
    size: int
    latency: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """An INT8 file beside the float32 file that it was made of.

    Attributes:
        int8, float32: their measurements. The latency is the median of a sample at a time, in onnxruntime on this CPU.
        calibrated_on: the number of training samples that gave the ranges.
    """

    int8: Measured
    float32: Measured
    calibrated_on: int

    def text(self, task: Task) -> str:
        """A line for the terminal."""
        metric, size = task.metrics[task.main_metric], f"{_size(self.int8.size)} ({_size(self.float32.size)})"
        int8, float32 = (
            metric.text(value) if isinstance(metric, Metric) else f"{value:.4g}"
            for value in (self.int8.score, self.float32.score)
        )
        score = f"{metric.title} {int8} (float32: {float32})"
        if math.isnan(self.int8.score):
            score = f"{metric.title} not checked, since no test sample has a label"
        return (
            f"INT8, ranges from {self.calibrated_on} training samples: {score}; size {size}; latency of one sample "
            f"{self.int8.latency:.3g} ms ({self.float32.latency:.3g} ms)"
        )


def export_int8(
    model: Tapped,
    data: Data,
    task: Task,
    path: Path,
    *,
    float32: Path | None = None,
    classes: Sequence[str] = (),
    calibration: Calibration | None = None,
) -> Comparison:
    """Write a network as an INT8 ONNX file, and compare it with the float32 file on the test split.

    Args:
        model: the network.
        data: its training split gives the ranges of the activations: 512 samples, the same in each call.
        task: that of the network; its main metric is compared.
        path: the file.
        float32: where to keep the float32 file; by default it is not kept.
        classes, calibration: as in ``export_onnx``. A calibration was fitted to float32 logits.

    Raises:
        TutelageError: the extra ``onnx`` is not installed, the network cannot be exported or quantised, or the training
            split is empty.
    """
    if len(data.train) == 0:
        raise TutelageError(f"{data.name} has no training sample that could give the ranges of INT8 activations")
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    batches = evaluation_batches(data.train.subset(chosen.sort().values), batch_size=64, workers=0)
    with tempfile.TemporaryDirectory() as folder:
        float32 = float32 or Path(folder) / "float32.onnx"
        export_onnx(model, data.image_shape, float32, classes=classes, calibration=calibration)
        quantise_onnx(float32, path, (batch.inputs.float() for batch in batches))
        return Comparison(_measured(path, data, task), _measured(float32, data, task), len(chosen))


def _measured(path: Path, data: Data, task: Task) -> Measured:
    model = task.wrap(OnnxNetwork(path), (0.0,), (1.0,)).eval()
    labelled = bool(data.test.targets.labelled(data.test.labels).any())
    score = task.score(model, data.test, data, Compute(torch.device("cpu"))) if labelled else math.nan
    timed = latency(OnnxNetwork(path), task.example(model, data), repeats=100)
    return Measured(score, path.stat().st_size, timed.median)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
