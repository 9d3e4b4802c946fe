"""Trained networks from what a user names, and students from what a configuration says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import predict
from tutelage.models.generator import Generator, wrapped
from tutelage.models.load import make_model
from tutelage.models.redrawn import Redrawn
from tutelage.models.state import dtype_note
from tutelage.models.surgery import repeat, surgery_of
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, read_about
from tutelage.runs.folder import WEIGHTS
from tutelage.trust import Trust, typed

GIVEN = "given:"  # what a configuration says of an object that was handed over in Python


def about_model(spec: str, model: Tapped, data: Data) -> dict[str, Any]:
    """What a weights file has to say of itself for its network to be built again."""
    return {
        "model": spec,
        "classes": list(data.classes),
        "image_shape": list(data.image_shape),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "surgery": surgery_of(model.module),
    }


def load_student(file: Path, network: nn.Module, data: Data) -> nn.Module:
    """The network that a file's weights are for, with them: ``network``, after the surgery that the file tells of.

    Raises:
        TutelageError: when the file is damaged, or its weights do not fit.
    """
    operations = read_about(file).get("surgery", [])
    if not isinstance(operations, list) or not all(isinstance(entry, dict) for entry in operations):
        raise TutelageError(f"{file} says {operations!r} about its network's surgery: expected a list; save it again")
    network = repeat(network, operations, torch.zeros(2, *data.image_shape))
    load_weights(file, network)
    return network


def student_maker(spec: str, data: Data, *, pretrained: bool = False, trust: Trust = True) -> Callable[[], Tapped]:
    """Makes students as ``make_student`` does; where the text names a single network, the further ones are redrawn."""
    redrawn: list[Redrawn] = []

    def make() -> Tapped:
        if redrawn:
            return redrawn[0]()
        built = make_model(
            spec, num_classes=data.num_classes, image_shape=data.image_shape, pretrained=pretrained, trust=trust
        )
        model = wrapped(built.module, *(built.mean_std or data.mean_std))
        if not built.single:
            return model
        redrawn.append(Redrawn(model))
        return redrawn[0]()

    return make


@default_settings()
def make_student(spec: str, data: Data, *, pretrained: bool = False, trust: Trust = True) -> Tapped:
    """A student with fresh weights (or published ones), normalised as those weights want or as the data is."""
    return student_maker(spec, data, pretrained=pretrained, trust=trust)()


@default_settings()
def open_model(text: str, data: Data, trust: Trust | None = None) -> Tapped:
    """A trained network: a run's folder, ``MODEL@WEIGHTS``, or a ``timm/`` or ``hf/`` name with published weights.

    It is in eval mode.

    Args:
        text: which.
        data: the images that it will be given.
        trust: whose code may be imported (``check_trusted``). Unless given, that of the MODEL in ``text``, and not that
            of a network which only the file in a folder names.

    Raises:
        TutelageError: when it is none of these, runs code that is not trusted, or was trained for another number of
            classes.
    """
    trust = typed(text) if trust is None else trust
    named_in = "the configuration"
    folder = Path(text).expanduser()
    spec, at, weights = text.rpartition("@")
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise TutelageError(f"{text} holds no {WEIGHTS}; it is no folder of a finished run")
        about = read_about(folder / WEIGHTS)
        named_in = str(folder / WEIGHTS)
        spec, file = str(about.get("model", "")), folder / WEIGHTS
        if not spec or spec.startswith(GIVEN):
            raise TutelageError(f"{file} does not say which network it is for; name it, as MODEL@{file}")
    elif at:
        file = Path(weights).expanduser()
        about = read_about(file)
    elif text.startswith(("timm/", "hf/")):
        return make_student(text, data, pretrained=True, trust=trust).eval()
    else:
        raise TutelageError(
            f"no trained network {text!r}: give the folder of a finished run, MODEL@WEIGHTS.safetensors, "
            "timm/NAME or hf/NAME"
        )
    _check_classes(text, about, data)
    built = make_model(spec, num_classes=data.num_classes, image_shape=data.image_shape, trust=trust, named_in=named_in)
    module = load_student(file, built.module, data)
    mean_std = (about["mean"], about["std"]) if "mean" in about else built.mean_std or data.mean_std
    return wrapped(module, *mean_std).eval()


def _check_classes(text: str, about: dict[str, Any], data: Data) -> None:
    classes = about.get("classes")
    if classes is None:
        return
    if len(classes) != data.num_classes:
        raise TutelageError(
            f"{text} was trained for {len(classes)} classes and {data.name} has {data.num_classes}; "
            "give it a network of the same classes"
        )
    differing = [pair for pair in zip(classes, data.classes, strict=True) if pair[0] != pair[1]]
    if differing:
        warnings.warn(
            f"{text} calls its classes differently ({differing[0][0]!r} where {data.name} has {differing[0][1]!r}); "
            "check that they stand in the same order",
            TutelageWarning,
            stacklevel=3,
        )


def warn_at_chance(text: str, model: Tapped, data: Data, device: torch.device | str) -> None:
    """Warn of a teacher that knows nothing of this data, judged on held-out or else on training labels.

    A generator knows no labels, and is not judged here.

    Raises:
        TutelageError: when it does not take these images or has another number of classes.
    """
    if isinstance(model, Generator):
        return
    split = data.validation or data.train
    split = split.subset(torch.arange(min(2000, len(split))))
    labels = split.labels if split.labels.ndim == 1 else split.labels.argmax(1)
    try:
        logits = predict(model, split, device=device)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        remedy = dtype_note(model) or "; give it one for such images"
        raise TutelageError(
            f"the teacher {text} cannot take images of shape {data.image_shape}: {one_line(error)}{remedy}"
        ) from error
    if logits.shape[1] != data.num_classes:
        raise TutelageError(
            f"the teacher {text} gives {logits.shape[1]} logits and {data.name} has {data.num_classes} classes; "
            "give it a network of the same classes"
        )
    share = float(accuracy(logits, labels.to(device)))
    if share < 1.5 / data.num_classes:
        warnings.warn(
            f"the teacher {text} gets {share:.1%} of {len(split)} samples of {data.name} right, which is chance level "
            f"for {data.num_classes} classes; check its weights, its normalisation and the order of the classes",
            TutelageWarning,
            stacklevel=2,
        )
