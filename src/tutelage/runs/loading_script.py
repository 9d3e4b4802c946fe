"""How a student is loaded and run in plain PyTorch: the text of ``load.py`` beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.config import OBJECT_PREFIX
from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.models.weights import read_metadata
from tutelage.runs.folder import LOAD, WEIGHTS

BESIDE = f'Path(__file__).with_name("{WEIGHTS}")'
"""The path of the weights, as an expression, for a script in the same folder."""


def add_loading_script(folder: Path) -> None:
    """Write ``load.py`` into the folder of a finished run, unless it is there or nothing can be written there.

    Runs of a study have none: nobody reads hundreds of them, and ``tutelage export`` prints the same lines.
    """
    with suppress(TutelageError):  # of a finished run on a read-only medium, say; nothing depends on the script
        if not (folder / LOAD).exists():
            script = loading_script(read_metadata(folder / WEIGHTS)).encode()
            atomic_write(folder / LOAD, script, follow=False)


def loading_script(about: Mapping[str, Any], file: str = BESIDE) -> str:
    """A script that loads a student without a wrapper, and maps raw inputs to what the student gives.

    Args:
        about: what the weights file says of itself (``weights_metadata``).
        file: a Python expression for the path of the weights.

    Returns:
        Lines that define ``network``, ``classes`` and the function ``student``, and ``mean`` and ``std`` where it
        normalises. Where the network was handed over as an object, or its inputs are no images, the user fills in
        the line that builds it.
    """
    spec, operations, images = about["model"], about["surgery"], "image_shape" in about
    shape = tuple(about["image_shape" if images else "input_shape"])
    classes = list(about["classes"])
    inputs = f"{'Images' if images else 'Inputs'}: (B, {', '.join(map(str, shape))})"
    inputs += " float32, pixels in [0, 1]" if images else ""
    imports = ["from pathlib import Path", "", "import torch", "from safetensors.torch import load_file"]
    if spec.startswith(OBJECT_PREFIX) or not images:
        build = [f"network = ...  # build your network here: {spec.removeprefix(OBJECT_PREFIX)!r}"]
    else:
        imports.append("from tutelage.models.load import make_model")
        build = [f"network = make_model({spec!r}, num_classes={len(classes)}, input_shape={shape}).module"]
    if operations:
        imports.append("from tutelage.models.surgery import reapply")
        build.append(f"network = reapply(network, {operations!r}, torch.zeros(2, *{shape}))")
    normalised = (list(about["mean"]), list(about["std"])) != ([0.0], [1.0])
    statistics = [
        f"{name} = torch.tensor({about[name]}).view(1, -1{', 1' * (len(shape) - 1)})" for name in ("mean", "std")
    ]
    lines = [
        f"# Loads the student in plain PyTorch. {inputs}.",
        *imports,
        "",
        *build,
        f"network.load_state_dict(load_file({file}))",
        *(statistics if normalised else ()),
        f"classes = {classes}",
        "",
        "",
        "def student(inputs):",
        f"    return network.eval()({'(inputs - mean) / std' if normalised else 'inputs'})",
    ]
    return "\n".join(lines) + "\n"
