"""Open data sets by name: ``digits``, ``npz:FILE``, ``folder:PATH``, ``masks:FOLDER``, ``hf:REPO`` and others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path
from tutelage.text import value_text

if TYPE_CHECKING:
    from tutelage.data.assemble import Reading


@dataclass(frozen=True, slots=True)
class Options:
    """Reading options, for the data sets that support them.

    Attributes:
        image_size: side in pixels to scale and cut images to.
        test: the share of the samples for the test split.
        skip_bad: leave out images that cannot be decoded.
        whole: read random boxes of whole images, if they are image files that are resized.
        cache: the folder in which decoded images are kept.
    """

    image_size: int | None = None
    test: float | None = None
    skip_bad: bool = False
    whole: bool = False
    cache: str | os.PathLike[str] | None = None

    def reading(self) -> Reading:
        """How image files are read."""
        from tutelage.data.assemble import Reading
        from tutelage.data.pixel_cache import PixelCache

        return Reading(self.whole, None if self.cache is None else PixelCache(self.cache))

    def refuse(self, name: str, *fields: str) -> None:
        """Refuse these fields if they are set: data of this name do not support them."""
        if "image_size" in fields and self.image_size is not None:
            raise TutelageError(
                f"the image size {self.image_size} is for folder:, hf:, maps:, masks:, boxes: and frames: data; "
                f"leave it out for {name}"
            )
        if "test" in fields and self.test is not None:
            raise TutelageError(
                f"the test share {self.test} is for folder:, maps:, masks:, boxes: and frames: data and arrays without "
                f"a test split; leave it out for {name}"
            )
        if "skip_bad" in fields and self.skip_bad:
            raise TutelageError(
                f"skip_bad is for the images of folder:, hf:, masks: and boxes: data; leave it out for {name}"
            )
        if "cache" in fields and self.cache is not None:
            raise TutelageError(
                f"the cache of decoded images {os.fspath(self.cache)} is for folder:, hf:, maps:, masks: and "
                f"boxes: data; leave it out for {name}"
            )


@default_settings()
def open_data(
    spec: str | os.PathLike[str] | Data | object,
    *,
    image_size: int | None = None,
    test: float | None = None,
    skip_bad: bool = False,
    whole: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Data:
    """Open a data set by name or path, or convert a Python object; a ``Data`` is returned unchanged.

    Args:
        spec: ``digits`` (part of scikit-learn), ``barcodes[:SEVERITY]`` (rendered), ``idx:FOLDER`` (MNIST's files),
            ``npz:FILE`` (plain arrays), ``folder:PATH`` (images in ``train/CLASS/`` or ``CLASS/``), ``hf:REPO`` (the
            Hugging Face hub), ``text:FOLDER`` (tab-separated files and a tokenizer), ``wav:FOLDER`` (sounds in
            ``train/CLASS/``), ``maps:FOLDER`` (images with saliency maps or fixations), ``masks:FOLDER`` (images and
            masks in ``train/images/`` and ``train/masks/``), ``boxes:FOLDER`` (images with boxes of objects, in the
            layout of Pascal VOC or COCO), ``frames:FOLDER`` (videos with an object's box in each frame); the path
            (``os.PathLike``) of an ``.npz`` file or of a folder; a ``Data``; or an object with all samples: a pair of
            images and labels (see ``Data.from_arrays``), a map-style dataset of such pairs, or a tuple of a training
            and a test set of those kinds.
        image_size: side in pixels to scale and cut images to, for ``folder``, ``hf``, ``maps`` and ``masks``; for
            ``boxes`` to scale them to, without a cut; for ``frames`` that of search crops, 127 or 255.
        test: the share of the samples for the test split, for ``folder``, ``maps``, ``masks``, ``boxes``, ``frames``
            and objects without one; by default 0.2.
        skip_bad: leave out images that cannot be decoded, for ``folder``, ``hf``, ``masks`` and ``boxes``.
        whole: for ``folder`` and ``hf`` with an ``image_size``: read random boxes of whole images, which views such as
            ``RandomViews`` choose, and for evaluation the middle 7/8 of the shorter side.
        cache: for ``folder``, ``hf``, ``maps``, ``masks`` and ``boxes``: a folder in which decoded images are kept for
            later epochs and runs.

    Raises:
        TutelageError: the name, the path or the content of the file cannot be used.
    """
    options = Options(image_size, test, skip_bad, whole, cache)
    if isinstance(spec, Data):
        options.refuse(spec.name, "image_size", "test", "skip_bad", "cache")
        return spec
    if not isinstance(spec, str | os.PathLike):
        from tutelage.data.adapters import as_data

        options.refuse("objects made in Python", "image_size", "skip_bad", "cache")
        return as_data(spec, test)
    spec = spec_from_path(spec)
    scheme, _, argument = spec.partition(":")
    if scheme not in LOADERS:
        raise unknown("data set", scheme, LOADERS, _advice(spec))
    try:
        return LOADERS[scheme](argument, options)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise TutelageError(
            f"cannot read {error.filename or spec}: {reason}; check the path and its permissions"
        ) from error


def spec_from_path(spec: str | os.PathLike[str]) -> str:
    """The name of the data set at a path: ``npz:FILE``, ``idx:FOLDER`` or ``folder:PATH``; a name is returned as is."""
    text = os.fspath(spec)
    if isinstance(spec, str) or text.partition(":")[0] in LOADERS:
        return text
    path = as_path(text)
    if path.is_dir():
        return f"idx:{text}" if any(path.glob("*idx?-ubyte*")) else f"folder:{text}"
    return f"npz:{text}" if path.suffix == ".npz" else text


# Each function imports its own module only, so that a data set does not need the dependencies of another one.


def _boxes(argument: str, options: Options) -> Data:
    from tutelage.data.boxes.load import load

    path = _existing("boxes", argument, "folder")
    return load(path, options.image_size, test=options.test, skip_bad=options.skip_bad, reading=options.reading())


def _digits(argument: str, options: Options) -> Data:
    from tutelage.data import digits

    if argument:
        raise TutelageError(f"digits has no arguments, got 'digits:{argument}'; leave out ':{argument}'")
    options.refuse("digits", "image_size", "test", "skip_bad", "cache")
    return digits.load()


def _barcodes(argument: str, options: Options) -> Data:
    from tutelage.data import barcodes

    try:
        severity = float(argument) if argument else 1.0
    except ValueError:
        raise TutelageError(
            f"the severity of barcodes is a number, got {value_text(argument)}; write barcodes or barcodes:1.4"
        ) from None
    options.refuse("barcodes", "image_size", "test", "skip_bad", "cache")
    return barcodes.load(severity)


def _idx(argument: str, options: Options) -> Data:
    from tutelage.data import idx

    options.refuse("idx", "image_size", "test", "skip_bad", "cache")
    return idx.load(_existing("idx", argument, "folder"))


def _npz(argument: str, options: Options) -> Data:
    from tutelage.data import npz

    options.refuse("npz", "image_size", "test", "skip_bad", "cache")
    return npz.load(_existing("npz", argument, "file"))


def _folder(argument: str, options: Options) -> Data:
    from tutelage.data import folder

    path = _existing("folder", argument, "folder")
    return folder.load(
        path, options.image_size, test=options.test, skip_bad=options.skip_bad, reading=options.reading()
    )


def _hf(argument: str, options: Options) -> Data:
    from tutelage.data import hf

    if not argument:
        raise TutelageError("hf: needs the name of a data set, for instance hf:ylecun/mnist")
    options.refuse("hf", "test")
    return hf.load(argument, options.image_size, skip_bad=options.skip_bad, reading=options.reading())


def _masks(argument: str, options: Options) -> Data:
    from tutelage.data import masks

    path = _existing("masks", argument, "folder")
    return masks.load(path, options.image_size, test=options.test, skip_bad=options.skip_bad, reading=options.reading())


def _text(argument: str, options: Options) -> Data:
    from tutelage.data import text

    options.refuse("text", "image_size", "test", "skip_bad", "cache")
    return text.load(_existing("text", argument, "folder"))


def _frames(argument: str, options: Options) -> Data:
    from tutelage.data import videos

    options.refuse("frames", "skip_bad", "cache")
    return videos.load(_existing("frames", argument, "folder"), options.image_size, test=options.test)


def _wav(argument: str, options: Options) -> Data:
    from tutelage.data import wav

    options.refuse("wav", "image_size", "test", "skip_bad", "cache")
    return wav.load(_existing("wav", argument, "folder"))


def _maps(argument: str, options: Options) -> Data:
    from tutelage.data import maps

    options.refuse("maps", "skip_bad")
    folder = _existing("maps", argument, "folder")
    return maps.load(folder, options.image_size, test=options.test, reading=options.reading())


LOADERS: Mapping[str, Callable[[str, Options], Data]] = {
    "digits": _digits,
    "barcodes": _barcodes,
    "boxes": _boxes,
    "idx": _idx,
    "npz": _npz,
    "folder": _folder,
    "hf": _hf,
    "masks": _masks,
    "text": _text,
    "wav": _wav,
    "maps": _maps,
    "frames": _frames,
}


def _existing(scheme: str, text: str, kind: str) -> Path:
    """The path of a file or a folder, which must exist and be of that kind."""
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
        folders = ("folder", "idx", "text", "wav", "maps", "masks", "boxes", "frames")
        kinds = folders if as_path(spec).is_dir() else ("npz",)
        return f"For this path write {' or '.join(f'{kind}:{spec}' for kind in kinds)}."
    return (
        "Write digits, barcodes[:SEVERITY], idx:FOLDER, npz:FILE, folder:PATH, hf:REPO, text:FOLDER, wav:FOLDER, "
        "maps:FOLDER, masks:FOLDER, boxes:FOLDER or frames:FOLDER."
    )
