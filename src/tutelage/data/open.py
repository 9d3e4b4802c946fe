"""One name for every data set: ``digits``, ``npz:FILE``, ``folder:PATH``, ``hf:REPO``, ``text:FOLDER`` and others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path
from tutelage.text import value_text


@dataclass(frozen=True, slots=True)
class Options:
    """How data are read, for those data sets that have the choice.

    Attributes:
        image_size: side in pixels to scale and cut images to.
        test: the share that becomes the test split.
        skip_bad: leave out images that cannot be decoded.
    """

    image_size: int | None = None
    test: float | None = None
    skip_bad: bool = False

    def refuse(self, name: str, *fields: str) -> None:
        """Refuse these fields if they are set: data of this name do not have the choice."""
        if "image_size" in fields and self.image_size is not None:
            raise TutelageError(
                f"the image size {self.image_size} is for folder: and hf: data; leave it out for {name}"
            )
        if "test" in fields and self.test is not None:
            raise TutelageError(
                f"the test share {self.test} is for data without a test split of their own, in a folder: or in arrays; "
                f"leave it out for {name}"
            )
        if "skip_bad" in fields and self.skip_bad:
            raise TutelageError(f"skip_bad is for the images of folder: and hf: data; leave it out for {name}")


@default_settings()
def open_data(
    spec: str | os.PathLike[str] | Data | object,
    *,
    image_size: int | None = None,
    test: float | None = None,
    skip_bad: bool = False,
) -> Data:
    """The data set that a text names, or the one that is given, as it is.

    Args:
        spec: ``digits`` (part of scikit-learn), ``barcodes[:SEVERITY]`` (rendered), ``idx:FOLDER`` (MNIST's files),
            ``npz:FILE`` (plain arrays), ``folder:PATH`` (images in ``train/CLASS/`` or ``CLASS/``), ``hf:REPO`` (the
            Hugging Face hub),
            ``text:FOLDER`` (tab-separated files and a tokenizer), ``wav:FOLDER`` (sounds in ``train/CLASS/``); the path
            (``os.PathLike``) of an ``.npz`` file or of a folder; a ``Data``; or an object with all samples: a pair of
            images and labels (see ``Data.from_arrays``), a map-style dataset of such pairs, or a tuple of a training
            and a test set of those kinds.
        image_size: side in pixels to scale and cut images to, for ``folder`` and ``hf``.
        test: the share of a data set without a test split that becomes it, for ``folder`` and objects; by default 0.2.
        skip_bad: leave out images that cannot be decoded, for ``folder`` and ``hf``.

    Raises:
        TutelageError: the name, the path or what is in it cannot be used.
    """
    options = Options(image_size, test, skip_bad)
    if isinstance(spec, Data):
        options.refuse(spec.name, "image_size", "test", "skip_bad")
        return spec
    if not isinstance(spec, str | os.PathLike):
        from tutelage.data.adapters import as_data

        options.refuse("objects made in Python", "image_size", "skip_bad")
        return as_data(spec, test)
    spec = spec_from_path(spec)
    scheme, _, rest = spec.partition(":")
    if scheme not in LOADERS:
        raise unknown("data set", scheme, LOADERS, _advice(spec))
    try:
        return LOADERS[scheme](rest, options)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise TutelageError(
            f"cannot read {error.filename or spec}: {reason}; check the path and its permissions"
        ) from error


def spec_from_path(spec: str | os.PathLike[str]) -> str:
    """A data set's name from its path: ``npz:FILE``, ``idx:FOLDER`` or ``folder:PATH``. A text is a name already."""
    text = os.fspath(spec)
    if isinstance(spec, str) or text.partition(":")[0] in LOADERS:
        return text
    path = as_path(text)
    if path.is_dir():
        return f"idx:{text}" if any(path.glob("*idx?-ubyte*")) else f"folder:{text}"
    return f"npz:{text}" if path.suffix == ".npz" else text


# Each imports its own module only, so that naming one data set does not need what another one needs.


def _digits(rest: str, options: Options) -> Data:
    from tutelage.data import digits

    if rest:
        raise TutelageError(f"digits stands alone, got 'digits:{rest}'; leave out ':{rest}'")
    options.refuse("digits", "image_size", "test", "skip_bad")
    return digits.load()


def _barcodes(rest: str, options: Options) -> Data:
    from tutelage.data import barcodes

    try:
        severity = float(rest) if rest else 1.0
    except ValueError:
        raise TutelageError(
            f"the severity of barcodes is a number, got {value_text(rest)}; write barcodes or barcodes:1.4"
        ) from None
    options.refuse("barcodes", "image_size", "test", "skip_bad")
    return barcodes.load(severity)


def _idx(rest: str, options: Options) -> Data:
    from tutelage.data import idx

    options.refuse("idx", "image_size", "test", "skip_bad")
    return idx.load(_existing("idx", rest, "folder"))


def _npz(rest: str, options: Options) -> Data:
    from tutelage.data import npz

    options.refuse("npz", "image_size", "test", "skip_bad")
    return npz.load(_existing("npz", rest, "file"))


def _folder(rest: str, options: Options) -> Data:
    from tutelage.data import folder

    path = _existing("folder", rest, "folder")
    return folder.load(path, options.image_size, test=options.test, skip_bad=options.skip_bad)


def _hf(rest: str, options: Options) -> Data:
    from tutelage.data import hf

    if not rest:
        raise TutelageError("hf: needs the name of a data set, for instance hf:ylecun/mnist")
    options.refuse("hf", "test")
    return hf.load(rest, options.image_size, skip_bad=options.skip_bad)


def _text(rest: str, options: Options) -> Data:
    from tutelage.data import text

    options.refuse("text", "image_size", "test", "skip_bad")
    return text.load(_existing("text", rest, "folder"))


def _wav(rest: str, options: Options) -> Data:
    from tutelage.data import wav

    options.refuse("wav", "image_size", "test", "skip_bad")
    return wav.load(_existing("wav", rest, "folder"))


LOADERS: Mapping[str, Callable[[str, Options], Data]] = {
    "digits": _digits,
    "barcodes": _barcodes,
    "idx": _idx,
    "npz": _npz,
    "folder": _folder,
    "hf": _hf,
    "text": _text,
    "wav": _wav,
}


def _existing(scheme: str, text: str, kind: str) -> Path:
    """The path of a file or a folder that must be there and be of that kind."""
    if not text:
        raise TutelageError(f"{scheme}: needs a {kind}, for instance {scheme}:path/to/{kind}")
    path = as_path(text)
    if not path.exists():
        raise TutelageError(f"{scheme}: there is no {kind} {path}; check the path, which starts from {Path.cwd()}")
    if kind == "file" and not path.is_dir() and not path.is_file():
        raise TutelageError(f"{scheme}: {path} is no ordinary file; name one")
    if path.is_dir() != (kind == "folder"):
        raise TutelageError(f"{scheme}: {path} is a {'folder' if path.is_dir() else 'file'}; name a {kind}")
    return path


def _advice(spec: str) -> str:
    if spec and as_path(spec).exists():
        kinds = ("folder", "idx", "text", "wav") if as_path(spec).is_dir() else ("npz",)
        return f"For this path write {' or '.join(f'{kind}:{spec}' for kind in kinds)}."
    return "Write digits, barcodes[:SEVERITY], idx:FOLDER, npz:FILE, folder:PATH, hf:REPO, text:FOLDER or wav:FOLDER."
