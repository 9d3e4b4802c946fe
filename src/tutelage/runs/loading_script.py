"""The script ``load.py`` in a run's folder, which loads and runs the student in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.config import OBJECT_PREFIX
from tutelage.data.modality import Pixels, described
from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.models.weights import read_metadata
from tutelage.runs.folder import LOAD, WEIGHTS

SAME_FOLDER = f'Path(__file__).with_name("{WEIGHTS}")'
"""A Python expression for the path of weights in the folder of the script."""


def add_loading_script(folder: Path, *, replace: bool = False) -> None:
    """Write ``load.py`` into the folder of a finished run, unless the folder is not writable.

    A script that exists stays unless ``replace``.

    Runs of a study have no such script; ``tutelage export`` prints it.
    """
    with suppress(TutelageError):  # for example a read-only medium; nothing depends on the script
        if replace or not (folder / LOAD).exists():
            script = loading_script(read_metadata(folder / WEIGHTS)).encode()
            atomic_write(folder / LOAD, script, follow=False)


def loading_script(metadata: Mapping[str, Any], file: str = SAME_FOLDER) -> str:
    """A script that loads a student in plain PyTorch and maps raw inputs to its outputs.

    Args:
        metadata: the metadata of the weights file (``weights_metadata``).
        file: a Python expression for the path of the weights.

    Returns:
        Lines that define ``network``, ``classes`` and the function ``student``, ``mean`` and ``std`` if the student
        normalises its inputs, and ``temperature`` if it is calibrated. If the network was passed as an object, or the
        file does not record the kind of its inputs, the user fills in the line that builds it.
    """
    spec, operations, images = metadata["model"], metadata["surgery"], "image_shape" in metadata
    shape = tuple(metadata["image_shape" if images else "input_shape"])
    classes = list(metadata["classes"])
    modality = Pixels() if images else described(metadata.get("modality"))
    inputs = f"{'Images' if images else 'Inputs'}: (B, {', '.join(map(str, shape))})"
    if modality is not None:
        inputs += f" {str(modality.example(0, shape).dtype).removeprefix('torch.')}"
        inputs += f", {modality.unit or modality.input_name}"
    imports = ["from pathlib import Path", "", "import torch", "from safetensors.torch import load_file"]
    example = f"torch.zeros(2, *{shape})"
    if spec.startswith(OBJECT_PREFIX) or modality is None:
        build = [f"network = ...  # build your network here: {spec.removeprefix(OBJECT_PREFIX)!r}"]
    else:
        arguments = f"{spec!r}, num_classes={len(classes)}, input_shape={shape}"
        if not images:
            imports.append(f"from tutelage.data.modality import {type(modality).__name__}")
            arguments += ", modality=modality"
            example = f"modality.example(2, {shape})"
        imports.append("from tutelage.models.load import make_model")
        build = [*([] if images else [f"modality = {modality!r}"]), f"network = make_model({arguments}).module"]
    if operations:
        imports.append("from tutelage.models.surgery import reapply")
        build.append(f"network = reapply(network, {operations!r}, {example})")
    normalised = (list(metadata["mean"]), list(metadata["std"])) != ([0.0], [1.0])
    statistics = [
        f"{name} = torch.tensor({metadata[name]}).view(1, -1{', 1' * (len(shape) - 1)})" for name in ("mean", "std")
    ]
    calibration = metadata.get("calibration")
    calibrated = f"temperature = {(calibration or {}).get('temperature')}  # for softmax(student(inputs) / temperature)"
    lines = [
        f"# Loads the student in plain PyTorch. {inputs}.",
        *imports,
        "",
        *build,
        f"network.load_state_dict(load_file({file}))",
        *(statistics if normalised else ()),
        f"classes = {classes}",
        *([calibrated] if calibration else ()),
        "",
        "",
        "def student(inputs):",
        f"    return network.eval()({'(inputs - mean) / std' if normalised else 'inputs'})",
    ]
    return "\n".join(lines) + "\n"
