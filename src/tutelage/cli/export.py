"""The command ``tutelage export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import PATH_OPTION, Mean, Std, TrustAll
from tutelage.cli.trained import open_networks
from tutelage.errors import TutelageError


def export(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or MODEL@WEIGHTS.")],
    onnx: Annotated[
        Path | None, typer.Option(help="ONNX file to write: pixels in [0, 1], or tokens, to logits.", **PATH_OPTION)
    ] = None,
    packed: Annotated[
        Path | None,
        typer.Option(
            help="Weights file to write, with integers of few bits or without zeros: low_bit and mint.",
            **PATH_OPTION,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set with the classes and image size.  [default: that of the run]"),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantize weights and activations to 8 bits; prints accuracy, size and latency of both."
        ),
    ] = False,
    trust: TrustAll = False,
) -> None:
    """Export a trained network to ONNX, including its normalization and calibration, or to a file of packed weights."""
    if onnx is None and packed is None:
        raise TutelageError("name the file to write: --onnx FILE, or --packed FILE for a network of low_bit or mint")
    if int8 and onnx is None:
        raise TutelageError("--int8 writes an ONNX file; name it with --onnx FILE")
    from tutelage.models.export import export_onnx
    from tutelage.models.packed import save_packed
    from tutelage.report.console import print_plain
    from tutelage.runs.classes import check_classes, with_classes
    from tutelage.runs.int8 import export_int8
    from tutelage.runs.loading_script import loading_script
    from tutelage.runs.models import weights_metadata
    from tutelage.runs.run_data import open_run_data
    from tutelage.tasks import find_task

    data_set = open_run_data(run, data, None)
    (network,) = open_networks([run], data_set, mean, std, trust)
    data_set = with_classes(data_set, network.model, network.classes)
    check_classes(run, network.classes, data_set)
    task = find_task(network.task or data_set.targets.task)
    classes, calibration = data_set.classes, network.calibration
    metadata = weights_metadata(network.spec, network.model, data_set, task, calibration)
    if packed is not None:
        print_plain(f"{packed}: {save_packed(packed, network.model.module, metadata):,} bytes")
    if onnx is None:
        return
    if int8:
        comparison = export_int8(network.model, data_set, task, onnx, classes=classes, calibration=calibration)
        lines: list[object] = [onnx, comparison.text(task)]
    else:
        shape, modality = data_set.input_shape, data_set.modality
        export_onnx(network.model, shape, onnx, modality=modality, classes=classes, calibration=calibration)
        lines = [onnx]
    for line in lines:
        print_plain(line)
    if task.decision_rule:
        print_plain(
            f"the file contains the network only, without the decision rule of {task.name}: {task.decision_rule}"
        )
    if network.file is not None and network.file.suffix == ".safetensors":
        print(f"\n{loading_script(metadata, repr(str(network.file)))}", end="")
