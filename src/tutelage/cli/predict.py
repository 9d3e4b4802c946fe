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
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of images.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list for each image.")] = 1,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write instead of a table.", **PATH_OPTION)] = None,
    classes: Annotated[
        str, typer.Option(help="Class names in order, if the weights record none: a,b,c.", metavar="<names>")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=4, help="Resize images to this many pixels per side.  [default: as in training]")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    skip_bad: SkipBad = False,
    mean: Mean = None,
    std: Std = None,
    trust: TrustAll = False,
    json_: Json = False,
) -> None:
    """Predict the classes of images with a trained network.

    After tutelage calibrate, probabilities are calibrated, and the set of classes that contains the true one with the
    chosen probability is listed too.
    """
    from tutelage.report.console import print_plain, stderr_console
    from tutelage.runs.prediction import predict_images

    fields: dict[str, Any] = {name: text for name, text in (("mean", mean), ("std", std)) if text is not None}
    predictions = predict_images(
        run,
        images,
        classes=[name for name in classes.split(",") if name],
        image_size=image_size,
        mean_std=Normalization(**fields).pair,
        skip_bad=skip_bad,
        device=device,
        trust=True if trust else None,
    )
    if predictions.unreadable:
        stderr_console().print(
            f"{len(predictions.unreadable)} images cannot be read and are left out, first {predictions.unreadable[0]}",
            highlight=False,
        )
    if csv is not None:
        predictions.save(csv, top)
        print_plain(csv)
    elif json_:
        print(json.dumps([*predictions.rows(top)], allow_nan=False))
    else:
        for row in predictions.rows(top):
            members = row.pop("set", None)
            file, *values = row.values()
            pairs = zip(values[::2], values[1::2], strict=True)
            text = f"{file}  " + "  ".join(f"{name} {100 * share:.1f} %" for name, share in pairs)
            print_plain(text if members is None else f"{text}  {{{', '.join(members)}}}")
        if predictions.coverage is not None:
            stderr_console().print(
                "calibrated probabilities; the set in braces contains the true class with probability "
                f"{predictions.coverage:.0%} or more",
                highlight=False,
            )
