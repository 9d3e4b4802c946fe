"""One name for every data set: ``digits``, ``idx:FOLDER``, ``npz:FILE``, ``folder:PATH``, ``hf:REPO``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path


@default_settings()
def open_data(spec: str | os.PathLike[str] | Data, *, image_size: int | None = None) -> Data:
    """The data set that a text names, or the one that is given, as it is.

    Args:
        spec: ``digits`` (part of scikit-learn), ``idx:FOLDER`` (MNIST's files), ``npz:FILE`` (plain arrays),
            ``folder:PATH`` (pictures in ``train/CLASS/``), ``hf:REPO`` (the Hugging Face hub), a ``Data``, or the
            path (``os.PathLike``) of an ``.npz`` file or of a folder, of which it is seen what it holds.
        image_size: side in pixels to scale and cut pictures to, for ``folder`` and ``hf``.

    Raises:
        TutelageError: the name, the path or what is in it cannot be used.
    """
    if isinstance(spec, Data):
        _has_one_size(spec.name, image_size)
        return spec
    spec = spec_of(spec)
    scheme, _, rest = spec.partition(":")
    if scheme not in LOADERS:
        raise unknown("data set", scheme, LOADERS, _advice(spec))
    try:
        return LOADERS[scheme](rest, image_size)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise TutelageError(
            f"cannot read {error.filename or spec}: {reason}; check the path and its permissions"
        ) from error


def spec_of(spec: str | os.PathLike[str]) -> str:
    """A data set's name from its path: ``npz:FILE``, ``idx:FOLDER`` or ``folder:PATH``. A text is a name already."""
    text = os.fspath(spec)
    if isinstance(spec, str) or text.partition(":")[0] in LOADERS:
        return text
    path = as_path(text)
    if path.is_dir():
        return f"idx:{text}" if any(path.glob("*idx?-ubyte*")) else f"folder:{text}"
    return f"npz:{text}" if path.suffix == ".npz" else text


# Each imports its own module only, so that naming one data set does not need what another one needs.


def _digits(rest: str, image_size: int | None) -> Data:
    from tutelage.data import digits

    if rest:
        raise TutelageError(f"digits stands alone, got 'digits:{rest}'; leave out ':{rest}'")
    _has_one_size("digits", image_size)
    return digits.load()


def _idx(rest: str, image_size: int | None) -> Data:
    from tutelage.data import idx

    _has_one_size("idx", image_size)
    return idx.load(_existing("idx", rest, "folder"))


def _npz(rest: str, image_size: int | None) -> Data:
    from tutelage.data import npz

    _has_one_size("npz", image_size)
    return npz.load(_existing("npz", rest, "file"))


def _folder(rest: str, image_size: int | None) -> Data:
    from tutelage.data import folder

    return folder.load(_existing("folder", rest, "folder"), image_size)


def _hf(rest: str, image_size: int | None) -> Data:
    from tutelage.data import hf

    if not rest:
        raise TutelageError("hf: needs the name of a data set, for instance hf:ylecun/mnist")
    return hf.load(rest, image_size)


LOADERS: Mapping[str, Callable[[str, int | None], Data]] = {
    "digits": _digits,
    "idx": _idx,
    "npz": _npz,
    "folder": _folder,
    "hf": _hf,
}


def _has_one_size(name: str, image_size: int | None) -> None:
    if image_size is not None:
        raise TutelageError(f"the image size {image_size} is for folder: and hf: data; leave it out for {name}")


def _existing(scheme: str, text: str, kind: str) -> Path:
    """The path of a file or a folder that must be there and be of that kind."""
    if not text:
        raise TutelageError(f"{scheme}: needs a {kind}, for instance {scheme}:path/to/{kind}")
    path = as_path(text)
    if not path.exists():
        raise TutelageError(f"{scheme}: there is no {kind} {path}; check the path, which starts from {Path.cwd()}")
    if path.is_dir() != (kind == "folder"):
        raise TutelageError(f"{scheme}: {path} is a {'folder' if path.is_dir() else 'file'}; name a {kind}")
    return path


def _advice(spec: str) -> str:
    if spec and as_path(spec).exists():
        kinds = ("folder", "idx") if as_path(spec).is_dir() else ("npz",)
        return f"For this path write {' or '.join(f'{kind}:{spec}' for kind in kinds)}."
    return "Write digits, idx:FOLDER, npz:FILE, folder:PATH or hf:REPO."
