"""The function ``compress``."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.api import distill
from tutelage.compression.candidates import Candidate, Target, candidates
from tutelage.compression.variants import DENSE, Compression, Variant
from tutelage.config import Config
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import flops, parameters
from tutelage.files import as_path
from tutelage.methods import find
from tutelage.models.onnx_network import OnnxNetwork, import_onnxruntime
from tutelage.models.packed import packable, save_packed
from tutelage.models.surgery import applied_operations
from tutelage.models.surgery.mask import fixed_zeros
from tutelage.models.tapped import Tapped
from tutelage.runs.classes import with_classes
from tutelage.runs.int8 import export_int8
from tutelage.runs.models import open_trained, weights_metadata
from tutelage.tasks import Metric, Task, find_task
from tutelage.training.loop import Record

ROUNDS = 60  # in which the latency of each file is measured, in turn
FLOAT, INT8, PACKED = "student.onnx", "student-int8.onnx", "student-packed.safetensors"


def compress(
    teacher: str,
    data: str | os.PathLike[str],
    *,
    target: str | Sequence[str] = ("flops=0.5",),
    methods: Sequence[str] = (),
    out: str | os.PathLike[str],
    report: Callable[[str, Record], None] | None = None,
    trust: bool = False,
    **config: Any,
) -> Compression:
    """Compress a trained network in several ways under the same budget, and measure what each costs and loses.

    Every method that compresses networks starts from the network, is trained with the same configuration and with the
    network as its teacher, and is exported to ONNX, in float32 and INT8. Accuracy, size and latency are those of the
    files in onnxruntime. The same call resumes what was stopped and repeats nothing that is finished, except for the
    measurements.

    Args:
        teacher: the folder of a finished run, or ``MODEL@WEIGHTS``.
        data: a name or a path, as ``open_data`` takes it.
        target: one or several of ``flops=SHARE``, ``parameters=SHARE`` and ``bits=SHARE``.
        methods: the methods to use; all that can aim at a target by default.
        out: the folder of all runs.
        report: called with the name of a run and one record per epoch.
        trust: import code that the teacher's file names.
        config: fields of ``Config`` for all runs: ``epochs``, ``seed``, ``noise``, ...

    Raises:
        TutelageError: for anything that you can correct; a method that does not fit the network is no error, but is
            listed in ``failed``, unless no method fits.
    """
    import_onnxruntime()
    targets = [Target.parse(text) for text in ([target] if isinstance(target, str) else target)]
    ways = candidates(targets, methods)
    folder = as_path(out)
    settings = Config(data=os.fspath(data), **config)
    data_set = load_data(settings)
    trained = open_trained(teacher, data_set, trust=trust or None)
    if operations := applied_operations(trained.model.module):
        raise TutelageError(
            f"{teacher} was changed by {operations[0]['operation']!r} after it was built, so that no copy of it can be "
            "built by its name; compress the network that it was made of"
        )
    data_set = with_classes(data_set, trained.model, trained.classes)
    task = find_task(trained.task or data_set.targets.task)
    metric = task.metrics[task.main_metric]
    if not isinstance(metric, Metric):
        raise TutelageError(f"compress compares networks by one number, and the task is {task.name}")
    variants, failed = list(_exported(DENSE, trained.model, data_set, task, folder)), dict[str, str]()
    for way in ways:
        try:
            variants += _made(way, teacher, trained.spec, data_set, task, folder, settings, report, trust)
        except TutelageError as error:
            failed[way.name] = str(error)
    if len(failed) == len(ways):
        raise TutelageError(f"no method can compress {teacher}: {next(iter(failed.values()))}")
    return Compression(
        network=trained.spec,
        data=data_set.name,
        samples=len(data_set.test),
        metric=metric,
        targets=tuple(map(str, targets)),
        variants=tuple(_with_latencies(variants, task.example(trained.model, data_set).cpu(), folder)),
        failed=failed,
    )


def _made(
    way: Candidate,
    teacher: str,
    student: str,
    data: Data,
    task: Task,
    folder: Path,
    config: Config,
    report: Callable[[str, Record], None] | None,
    trust: bool,
) -> Iterator[Variant]:
    """Train one candidate, and export it."""
    find(way.method).check(dict(way.settings))
    fields = {name: getattr(config, name) for name in config.model_fields_set if name != "data"}
    result = distill(
        teacher,
        student,
        config.data,
        method=way.method,
        settings=dict(way.settings),
        out=folder / way.name,
        report=report and (lambda record: report(way.name, record)),
        trust=trust,
        **fields,
    )
    packed = None
    if packable(result.model.module):
        metadata = weights_metadata(student, result.model, data, task)
        packed = save_packed(folder / way.name / PACKED, result.model.module, metadata)
    return (replace(variant, packed=packed) for variant in _exported(way.name, result.model, data, task, folder))


def _exported(name: str, model: Tapped, data: Data, task: Task, folder: Path) -> Iterator[Variant]:
    """A network's float32 and INT8 files; latencies are measured later, all in turn."""
    files = [folder / name / FLOAT, folder / name / INT8]
    comparison = export_int8(model, data, task, files[1], float32=files[0], classes=data.classes)
    example = task.example(model, data)
    for suffix, file, measured in zip(("", " INT8"), files, (comparison.float32, comparison.int8), strict=True):
        yield Variant(
            f"{name}{suffix}",
            measured.score,
            flops(model, example),
            parameters(model) - fixed_zeros(model.module),
            measured.size,
            measured.latency,
            str(file.relative_to(folder)),
        )


def _with_latencies(variants: Sequence[Variant], example: Tensor, folder: Path) -> list[Variant]:
    """The variants with their latencies, measured in turn so that all see the same load of the machine."""
    networks: list[nn.Module] = [OnnxNetwork(folder / variant.file, threads=1) for variant in variants]
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for network, times in zip(networks, seconds, strict=True):
                network(example)  # after another network, its first pass reads its weights into the caches
                start = time.perf_counter()
                network(example)
                times.append(time.perf_counter() - start)
    return [
        replace(variant, latency=1000 * statistics.median(times))
        for variant, times in zip(variants, seconds, strict=True)
    ]
