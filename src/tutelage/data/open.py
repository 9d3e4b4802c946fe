"""Open data sets by name: ``digits``, ``npz:FILE``, ``folder:PATH``, ``masks:FOLDER``, ``hf:REPO`` and others."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path
from tutelage.formats import FORMATS, Argument, names, supporting
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

    def refuse(self, name: str, supported: Collection[str] = ()) -> None:
        """Refuse options that are set and that data of this name do not support."""
        if "image_size" not in supported and self.image_size is not None:
            raise TutelageError(
                f"the image size {self.image_size} is for {supporting('image_size')} data; leave it out for {name}"
            )
        if "test" not in supported and self.test is not None:
            raise TutelageError(
                f"the test share {self.test} is for {supporting('test')} data and arrays without a test split; leave "
                f"it out for {name}"
            )
        if "skip_bad" not in supported and self.skip_bad:
            raise TutelageError(f"skip_bad is for {supporting('skip_bad')} data; leave it out for {name}")
        if "cache" not in supported and self.cache is not None:
            raise TutelageError(
                f"the cache of decoded images {os.fspath(self.cache)} is for {supporting('cache')} data; leave it out "
                f"for {name}"
            )

    def arguments(self, supported: Collection[str]) -> dict[str, Any]:
        """The supported options as keyword arguments of ``load``; the cache is part of ``reading``."""
        values: dict[str, Any] = {"image_size": self.image_size, "test": self.test, "skip_bad": self.skip_bad}
        arguments = {name: value for name, value in values.items() if name in supported}
        return arguments | ({"reading": self.reading()} if "cache" in supported else {})


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
        options.refuse(spec.name)
        return spec
    if not isinstance(spec, str | os.PathLike):
        from tutelage.data.adapters import as_data

        options.refuse("objects made in Python", ("test",))
        return as_data(spec, test)
    spec = spec_from_path(spec)
    name, _, argument = spec.partition(":")
    if name not in FORMATS:
        raise unknown("data set", name, FORMATS, _advice(spec))
    supported = FORMATS[name].options
    options.refuse(name, supported)
    value = ARGUMENTS[FORMATS[name].argument](name, argument)
    # One module alone, so that a data set does not need the dependencies of another one.
    module = importlib.import_module(f"{__package__}.formats.{FORMATS[name].module}")
    try:
        data: Data = module.load(*value, **options.arguments(supported))
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise TutelageError(
            f"cannot read {error.filename or spec}: {reason}; check the path and its permissions"
        ) from error
    return data


def spec_from_path(spec: str | os.PathLike[str]) -> str:
    """The name of the data set at a path: ``npz:FILE``, ``idx:FOLDER`` or ``folder:PATH``; a name is returned as is."""
    text = os.fspath(spec)
    if isinstance(spec, str) or text.partition(":")[0] in FORMATS:
        return text
    path = as_path(text)
    if path.is_dir():
        return f"idx:{text}" if any(path.glob("*idx?-ubyte*")) else f"folder:{text}"
    return f"npz:{text}" if path.suffix == ".npz" else text


def _nothing(name: str, text: str) -> tuple[()]:
    """No argument."""
    if text:
        raise TutelageError(f"{name} has no arguments, got '{name}:{text}'; leave out ':{text}'")
    return ()


def _severity(name: str, text: str) -> tuple[float, ...]:
    """A number, or nothing for the default."""
    try:
        return (float(text),) if text else ()
    except ValueError:
        raise TutelageError(
            f"the severity of {name} is a number, got {value_text(text)}; write {name} or {name}:1.4"
        ) from None


def _repository(name: str, text: str) -> tuple[str]:
    """A name of the hub."""
    if not text:
        raise TutelageError(f"{name}: needs the name of a data set, for instance {name}:ylecun/mnist")
    return (text,)


def _path(kind: str) -> Callable[[str, str], tuple[Path]]:
    """The path of a file or a folder, which must exist and be of that kind."""

    def checked(name: str, text: str) -> tuple[Path]:
        if not text:
            raise TutelageError(f"{name}: needs a {kind}, for instance {name}:path/to/{kind}")
        path = as_path(text)
        if not path.exists():
            raise TutelageError(f"{name}: there is no {kind} {path}; check the path, which starts from {Path.cwd()}")
        if kind == "file" and not path.is_dir() and not path.is_file():
            raise TutelageError(f"{name}: {path} is no ordinary file; name one")
        if path.is_dir() != (kind == "folder"):
            raise TutelageError(f"{name}: {path} is a {'folder' if path.is_dir() else 'file'}; name a {kind}")
        return (path,)

    return checked


ARGUMENTS: Mapping[Argument, Callable[[str, str], tuple[object, ...]]] = MappingProxyType(
    {
        "": _nothing,
        "[:SEVERITY]": _severity,
        ":FILE": _path("file"),
        ":FOLDER": _path("folder"),
        ":REPO": _repository,
    }
)


def _advice(spec: str) -> str:
    if spec and as_path(spec).exists():
        argument = ":FOLDER" if as_path(spec).is_dir() else ":FILE"
        kinds = [f"{name}:{spec}" for name, form in FORMATS.items() if form.argument == argument]
        return f"For this path write {' or '.join(kinds)}."
    return f"Write {names()}."
