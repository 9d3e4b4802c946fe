"""Finding the weights of a trained network by the name that a user types."""

from __future__ import annotations

from pathlib import Path

from tutelage.config import OBJECT_PREFIX
from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.runs.folder import CONFIG, WEIGHTS
from tutelage.runs.header import Header, read_header

PUBLISHED = ("timm/", "hf/")


def run_folder(text: str) -> Path | None:
    """The folder of the run that trained a network: ``text`` itself or the folder of its weights, if it is a run's."""
    parts = None if as_path(text).is_dir() else split_model_spec(text)
    folder = as_path(text) if parts is None else parts[1].parent
    return folder if (folder / CONFIG).is_file() and (parts is None or parts[1].name == WEIGHTS) else None


def split_model_spec(text: str) -> tuple[str, Path] | None:
    """The model and the path of ``MODEL@WEIGHTS``; ``None`` for a text without ``@``.

    Either part may contain an ``@``: the text is split at the last ``@`` that is followed by the path of an existing
    file, or else at the first.
    """
    positions = [index for index, letter in enumerate(text) if letter == "@"]
    splits = [(text[:index], as_path(text[index + 1 :])) for index in positions]
    return next((split for split in reversed(splits) if split[1].is_file()), splits[0] if splits else None)


def locate(text: str) -> tuple[str, Path, Header] | None:
    """The model's specification, the weights file and its header; ``None`` for published weights.

    Raises:
        TutelageError: there is no trained network of this name.
    """
    path = as_path(text)
    if path.is_dir():
        file = path / WEIGHTS
        if not file.is_file():
            raise TutelageError(f"{text} contains no {WEIGHTS}; {_remedy(path)}")
        header = read_header(file)
        spec = header.model
        if not spec or spec.startswith(OBJECT_PREFIX):
            raise TutelageError(f"{file} does not record its network; name it, as MODEL@{file}")
        return spec, file, header
    parts = split_model_spec(text)
    if parts is not None:
        spec, file = parts
        if not spec or text.endswith("@"):
            raise TutelageError(f"{text!r} is incomplete; write MODEL@WEIGHTS, such as resnet8@student.safetensors")
        if file.is_dir():
            raise TutelageError(f"{file} is a folder; name the weights file in it, such as {spec}@{file / WEIGHTS}")
        return spec, file, read_header(file)
    if text.startswith(PUBLISHED):
        return None
    if path.is_file():
        folder = f"the folder {path.parent} instead" if path.name == WEIGHTS else "the folder of a finished run"
        raise TutelageError(f"{text} is a file; name {folder}, or for weights their model too, as MODEL@{text}")
    raise TutelageError(
        f"no trained network {text!r}: name the folder of a finished run, MODEL@WEIGHTS.safetensors, "
        "timm/NAME or hf/NAME"
    )


def _remedy(folder: Path) -> str:
    """Advice on a folder without weights."""
    if (folder / CONFIG).is_file():
        return "the run is not finished; run its command again"
    if (folder.parent / WEIGHTS).is_file():
        return f"the run's folder is {folder.parent}"
    return "it is not the folder of a finished run; name such a folder, or MODEL@WEIGHTS"
