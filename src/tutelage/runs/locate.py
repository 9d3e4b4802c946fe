"""Where the weights of a trained network are, from what a user names."""

from __future__ import annotations

from pathlib import Path

from tutelage.config import OBJECT_PREFIX
from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.runs.folder import CONFIG, WEIGHTS
from tutelage.runs.header import Header, read_header

PUBLISHED = ("timm/", "hf/")


def run_folder(text: str) -> Path | None:
    """The folder of the run that trained the network of this name, its own or that of its weights, if there is one."""
    named = None if as_path(text).is_dir() else split_model_spec(text)
    folder = as_path(text) if named is None else named[1].parent
    return folder if (folder / CONFIG).is_file() and (named is None or named[1].name == WEIGHTS) else None


def split_model_spec(text: str) -> tuple[str, Path] | None:
    """The two parts of ``MODEL@WEIGHTS``; ``None`` for a text without ``@``.

    Either part may hold an ``@``: the text is split at the last one behind which there is a file, or else at the first.
    """
    places = [place for place, letter in enumerate(text) if letter == "@"]
    splits = [(text[:place], as_path(text[place + 1 :])) for place in places]
    return next((split for split in reversed(splits) if split[1].is_file()), splits[0] if splits else None)


def locate(text: str) -> tuple[str, Path, Header] | None:
    """The model, the weights file and the file's header; ``None`` for published weights.

    Raises:
        TutelageError: the text names no trained network.
    """
    path = as_path(text)
    if path.is_dir():
        file = path / WEIGHTS
        if not file.is_file():
            raise TutelageError(f"{text} holds no {WEIGHTS}; {_remedy(path)}")
        header = read_header(file)
        spec = header.model
        if not spec or spec.startswith(OBJECT_PREFIX):
            raise TutelageError(f"{file} does not say which network it is for; name it, as MODEL@{file}")
        return spec, file, header
    named = split_model_spec(text)
    if named is not None:
        spec, file = named
        if not spec or text.endswith("@"):
            raise TutelageError(f"{text!r} lacks a part; write MODEL@WEIGHTS, such as resnet8@student.safetensors")
        if file.is_dir():
            raise TutelageError(f"{file} is a folder; name the weights file in it, such as {spec}@{file / WEIGHTS}")
        return spec, file, read_header(file)
    if text.startswith(PUBLISHED):
        return None
    if path.is_file():
        folder = f"the folder {path.parent} instead" if path.name == WEIGHTS else "the folder of a finished run"
        raise TutelageError(f"{text} is a file; give {folder}, or for weights their model too, as MODEL@{text}")
    raise TutelageError(
        f"no trained network {text!r}: give the folder of a finished run, MODEL@WEIGHTS.safetensors, "
        "timm/NAME or hf/NAME"
    )


def _remedy(folder: Path) -> str:
    """What to do about a folder without weights."""
    if (folder / CONFIG).is_file():
        return "that run is not finished; give its command again"
    if (folder.parent / WEIGHTS).is_file():
        return f"the run's folder is {folder.parent}"
    return "it is not the folder of a finished run; give that of one, or MODEL@WEIGHTS"
