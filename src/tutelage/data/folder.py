"""A folder of pictures, one sub-folder for each class."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.data.data import Data
from tutelage.data.decode import IN_MEMORY, ImageFiles, assemble
from tutelage.errors import TutelageError, TutelageWarning

__all__ = ["ImageFiles", "load"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp"})
NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = (
    "pictures belong in train/CLASS/ and test/CLASS/ (and, if you like, val/CLASS/), or all in CLASS/ without those "
    "folders, and a share of them becomes the test part"
)


def load(
    folder: Path,
    image_size: int | None = None,
    *,
    test: float | None = None,
    skip_bad: bool = False,
    in_memory_bytes: int = IN_MEMORY,
) -> Data:
    """``train/CLASS/*`` and ``test/CLASS/*``, and ``val`` (or ``valid``, ``validation``); or just ``CLASS/*``.

    Without a ``test`` folder the validation folder is the test part. Without any of those folders the ones that are
    there are classes, and a share of each becomes the test part, the same one every time. The record and a warning say
    so. Classes are the folders of ``train``. Images have one channel if no picture has a colour mode, else three.
    Whatever is no PNG, JPEG, WebP or BMP in the folder of a class is passed over, and a warning counts it.

    Args:
        folder: where ``train`` is, or the classes are.
        image_size: side in pixels to scale and cut every picture to; ``None`` if they have one size already.
        test: the share that becomes the test part where there is no such folder; by default 0.2.
        skip_bad: leave out pictures that cannot be decoded, and count them in a warning and the record.
        in_memory_bytes: how many bytes the decoded pixels may take; above that they are read batch by batch.

    Raises:
        TutelageError: a folder is missing or superfluous, or a picture cannot be used; the text names it.
    """
    found = _parts(folder)
    if not found:
        found = {"train": folder}
    elif "train" not in found:
        raise TutelageError(f"{folder} has no folder train; {LAYOUT}")
    elif len(found) == 1:
        raise TutelageError(f"{folder} has no folder test; {LAYOUT}")
    passed_over = _passed_over(found)
    pictures = {part: _by_class(place) for part, place in found.items()}
    classes = tuple(pictures["train"])
    if not classes:
        raise TutelageError(f"{found['train']} has no class folders; {LAYOUT}")
    empty = [found["train"] / name for name, files in pictures["train"].items() if not files]
    if empty:
        raise TutelageError(
            f"the class folder {empty[0]} has no picture in it{_listed(passed_over)}; add some or remove it; {LAYOUT}"
        )
    strange = [found[part] / name for part in pictures for name in pictures[part] if name not in classes]
    if strange:
        raise TutelageError(
            f"{strange[0]} is a class that {found['train']} does not have; add training pictures of it or remove it"
        )
    if passed_over:
        warnings.warn(
            TutelageWarning(
                f"folder:{folder}{_listed(passed_over)}; pictures are {', '.join(sorted(SUFFIXES))} files directly in "
                "the folder of a class"
            ),
            stacklevel=4,
        )
    return assemble(
        f"folder:{folder}",
        classes,
        {part: _labelled(found[part], by_class, classes) for part, by_class in pictures.items()},
        image_size=image_size,
        record={"source": "folder"} | ({"passed_over": dict(passed_over)} if passed_over else {}),
        test=test,
        skip_bad=skip_bad,
        in_memory_bytes=in_memory_bytes,
    )


def _passed_over(parts: dict[str, Path]) -> Counter[str]:
    """How many files and folders in the parts are not read, by suffix; hidden files only with that of a picture."""
    classes = [place for part in parts.values() for place in part.iterdir() if _is_class(place)]
    among = [entry for part in parts.values() for entry in part.iterdir() if not _is_class(entry)]
    within = [entry for place in classes for entry in place.iterdir() if not _is_picture(entry)]
    return Counter(sorted(kind for entry in (*among, *within) if (kind := _kind(entry))))


def _kind(entry: Path) -> str:
    """What a warning calls something that is passed over; nothing for what systems hide in folders."""
    if entry.name.startswith("."):
        return "hidden picture" if entry.suffix.lower() in SUFFIXES else ""
    return "folder" if entry.is_dir() else entry.suffix.lower() or "file without a suffix"


def _listed(passed_over: Counter[str]) -> str:
    if not passed_over:
        return ""
    most = passed_over.most_common(10)
    rest = [(sum(passed_over.values()) - sum(count for _, count in most), "other")]
    counted = ", ".join(f"{count} {kind}" for count, kind in [*((n, kind) for kind, n in most), *rest] if count)
    return f" (passed over: {counted})"


def _parts(folder: Path) -> dict[str, Path]:
    """The folder of each part that is there."""
    found = [(part, folder / name) for part, names in NAMES.items() for name in names if (folder / name).is_dir()]
    parts = dict(found)
    if len(parts) < len(found):
        both = " and ".join(str(place) for part, place in found if part == "validation")
        raise TutelageError(f"{both} are both validation parts; keep one of them")
    return parts


@dataclass(frozen=True)
class _Files:
    """Files under one folder, as text: a million paths would be heavy to send to a worker."""

    root: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> Path:
        return Path(self.root, self.names[place])

    def name(self, place: int) -> str:
        return str(self[place])

    def stamp(self, place: int) -> str:
        """Where under the root it is, its bytes and when it was changed, in nanoseconds."""
        told = self[place].stat()
        return f"{self.names[place]} {told.st_size} {told.st_mtime_ns}"


def _by_class(folder: Path) -> dict[str, list[str]]:
    """The names of the pictures in every class folder, both sorted."""
    return {
        place.name: sorted(file.name for file in place.iterdir() if _is_picture(file))
        for place in sorted(folder.iterdir())
        if _is_class(place)
    }


def _is_class(place: Path) -> bool:
    return place.is_dir() and not place.name.startswith(".")


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _labelled(root: Path, by_class: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[_Files, torch.Tensor]:
    """A part's files, class by class, and their (N,) int64 labels."""
    names = tuple(f"{name}/{file}" for name, files in by_class.items() for file in files)
    numbers = torch.tensor([classes.index(name) for name in by_class], dtype=torch.int64)
    counts = torch.tensor([len(files) for files in by_class.values()], dtype=torch.int64)
    return _Files(str(root), names), numbers.repeat_interleave(counts)
