"""The command ``tutelage predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import PATH_OPTION, Json, Mean, SkipBad, Std, TrustAll
from tutelage.config import Normalization


def predict(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, MODEL@WEIGHTS, timm/NAME or hf/NAME.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Image files or folders of images; a COCO file for a detector; text files with a text on each line; "
            "folders of videos.",
            metavar="INPUT...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for files of predictions: masks, saliency maps, detections.json in COCO's format, tracks.",
            **PATH_OPTION,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list for each input of a classifier.")] = 1,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write instead of a table.", **PATH_OPTION)] = None,
    classes: Annotated[
        str, typer.Option(help="Class names in order, if the weights record none: a,b,c.", metavar="<names>")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=4, help="Resize images to this many pixels per side.  [default: as in training]")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer of texts: a file, a folder or a name.  [default: that of the run's data]"),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    skip_bad: SkipBad = False,
    mean: Mean = None,
    std: Std = None,
    trust: TrustAll = False,
    json_: Json = False,
) -> None:
    """Predict for files with a trained network: classes, masks, saliency maps, boxes, tracks, quantities or strings.

    After tutelage calibrate, probabilities of classes are calibrated, and the set of classes that contains the true one
    with the chosen probability is listed too.
    """
    from tutelage.files import check_new
    from tutelage.report.console import counting_progress, print_plain, stderr_console
    from tutelage.runs.predict_files import predict_files
    from tutelage.tasks import find_task

    if csv is not None:
        check_new(csv)  # before a long prediction
    fields: dict[str, Any] = {name: text for name, text in (("mean", mean), ("std", std)) if text is not None}
    with counting_progress(stderr_console()) as progress:
        predictions = predict_files(
            run,
            inputs,
            out=out,
            top=top,
            classes=[name for name in classes.split(",") if name],
            image_size=image_size,
            mean_std=Normalization(**fields).pair,
            skip_bad=skip_bad,
            tokenizer=tokenizer,
            device=device,
            trust=True if trust else None,
            progress=progress,
        )
    if predictions.unreadable:
        stderr_console().print(
            f"{len(predictions.unreadable)} images cannot be read and are left out, first {predictions.unreadable[0]}",
            highlight=False,
        )
    if csv is not None:
        predictions.save(csv)
        print_plain(csv)
    elif json_:
        print(json.dumps(predictions.rows, allow_nan=False))
    elif predictions.written:
        print_plain(predictions.written[0] if len(predictions.written) == 1 else out)
    else:
        task = find_task(predictions.task)
        for line in filter(None, map(task.row_text, predictions.rows)):
            print_plain(line)
        if predictions.coverage is not None:
            stderr_console().print(
                "calibrated probabilities; the set in braces contains the true class with probability "
                f"{predictions.coverage:.0%} or more",
                highlight=False,
            )
