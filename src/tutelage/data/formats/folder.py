"""A folder of images: one sub-folder for each class, or no class at all."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.data.assemble import Reading, assemble
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data
from tutelage.data.decode import ImageFiles
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.text import printable

__all__ = ["ImageFiles", "load"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp"})
NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test", "novel")}
NOVEL = "novel"  # a test split whose classes do not occur in ``train``
WITHOUT_LABELS = ("unlabelled", "unlabeled")
NO_CLASS = ""
LAYOUT = (
    "images belong in train/CLASS/ and test/CLASS/ (and, if you like, val/CLASS/), or all in CLASS/ without those "
    "folders, and a share of them becomes the test split; images without labels belong in the folder of the split "
    "itself, or in unlabelled/ for training"
)


def load(
    folder: Path,
    image_size: int | None = None,
    *,
    test: float | None = None,
    skip_bad: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """``train/CLASS/*`` and ``test/CLASS/*``, and ``val`` (or ``valid``, ``validation``); or just ``CLASS/*``.

    A folder ``novel`` instead of ``test`` has other classes than ``train``, for tasks that evaluate on new classes; the
    validation folder may then have such classes too. The classes of ``train`` come first.

    Without a ``test`` folder the validation folder is the test split. Without any of those folders each folder is a
    class, and a share of each becomes the test split, always the same one; the record and a warning say so. Classes
    are the folders of ``train``. Images have one channel if no image has a colour mode, else three.
    Files other than PNG, JPEG, WebP and BMP in a class folder are ignored, and a warning counts them.

    A split whose folder has images and no class folders has no labels, and so have the images of a folder
    ``unlabelled``, which join the training split, or are it where there is no ``train``. If no training image has a
    label, classes are the folders of the other splits; if no image has one, there are none, and a run takes those of
    its teacher.

    Args:
        folder: where ``train`` is, or the classes are, or images without labels.
        image_size: side in pixels to scale and cut every image to; ``None`` if they have one size already.
        test: the share that becomes the test split where there is no such folder; by default 0.2.
        skip_bad: leave out images that cannot be decoded, and count them in a warning and the record.
        reading: how images are read during training: in memory if their pixels fit, or batch by batch.

    Raises:
        TutelageError: a folder is missing or superfluous, or an image cannot be used; the text names it.
    """
    folders = _split_folders(folder)
    beside = _without_labels(folder) if folders else None
    if not folders:
        folders = {"train": folder}
    elif "train" not in folders and beside is None:
        raise TutelageError(f"{folder} has no folder train; {LAYOUT}")
    elif len(folders) == 1 and "train" in folders:
        raise TutelageError(f"{folder} has no folder test; {LAYOUT}")
    images = {split: _by_class(path) for split, path in folders.items()}
    if beside is not None:
        root = folders.setdefault("train", beside)
        files = [os.path.join(os.path.relpath(beside, root), name) for name in _files(beside)]
        among = images.get("train", {})
        images = {**images, "train": {**among, NO_CLASS: [*among.get(NO_CLASS, []), *files]}}
    passed_over = _passed_over({*folders.values(), *([] if beside is None else [beside])})
    if not images["train"]:
        raise TutelageError(f"{folders['train']} has no class folders and no images; {LAYOUT}")
    empty = [folders["train"] / name for name, files in images["train"].items() if not files]
    if empty:
        raise TutelageError(
            f"the class folder {empty[0]} has no image in it{_listed(passed_over)}; add some or remove it; {LAYOUT}"
        )
    everything = _classes(name for by_class in images.values() for name in by_class)
    classes = _classes(images["train"]) or everything
    if "test" in folders and folders["test"].name == NOVEL:
        if shared := [name for name in _classes(images["test"]) if name in images["train"]]:
            raise TutelageError(
                f"{folders['test'] / shared[0]} is a class that {folders['train']} has too; remove it from one of "
                "them, or name the folder test if all its classes occur in training"
            )
        classes += tuple(name for name in everything if name not in classes)
    unknown_classes = [
        folders[split] / name for split in images for name in _classes(images[split]) if name not in classes
    ]
    if unknown_classes:
        raise TutelageError(
            f"{unknown_classes[0]} is a class that {folders['train']} does not have; add training images of it or "
            "remove it"
        )
    if passed_over:
        warnings.warn(
            TutelageWarning(
                f"folder:{folder}{_listed(passed_over)}; images are {', '.join(sorted(SUFFIXES))} files directly in "
                "the folder of a class"
            ),
            stacklevel=4,
        )
    return assemble(
        f"folder:{folder}",
        classes,
        {split: _labelled(folders[split], by_class, classes) for split, by_class in images.items()},
        image_size=image_size,
        record={"source": "folder"} | ({"passed_over": dict(passed_over)} if passed_over else {}),
        test=test,
        skip_bad=skip_bad,
        reading=reading,
    )


def _without_labels(folder: Path) -> Path | None:
    """The folder of unlabelled training images, if it exists."""
    return next((folder / name for name in WITHOUT_LABELS if (folder / name).is_dir()), None)


def _classes(names: Iterable[str]) -> tuple[str, ...]:
    """The class names among the folders of a split, sorted."""
    return tuple(sorted({*names} - {NO_CLASS}))


def _passed_over(folders: Iterable[Path]) -> Counter[str]:
    """How many files and folders in the splits are ignored, by suffix; of hidden files only images count."""
    counts: Counter[str] = Counter()
    for folder in folders:
        entries = list(folder.iterdir())
        classes = [entry for entry in entries if _is_class(entry)]
        among = [entry for entry in entries if not _is_class(entry) and (classes or not _is_image(entry))]
        within = [entry for class_folder in classes for entry in class_folder.iterdir() if not _is_image(entry)]
        counts.update(kind for entry in (*among, *within) if (kind := _kind(entry)))
    return Counter(dict(sorted(counts.items())))


def _kind(entry: Path) -> str:
    """The name of an ignored file or folder in warnings; empty for hidden files of the operating system."""
    if entry.name.startswith("."):
        return "hidden image" if entry.suffix.lower() in SUFFIXES else ""
    return "folder" if entry.is_dir() else printable(entry.suffix.lower()) or "file without a suffix"


def _listed(passed_over: Counter[str]) -> str:
    if not passed_over:
        return ""
    most_common = passed_over.most_common(10)
    rest = [(sum(passed_over.values()) - sum(count for _, count in most_common), "other")]
    counted = ", ".join(f"{count} {kind}" for count, kind in [*((n, kind) for kind, n in most_common), *rest] if count)
    return f" (passed over: {counted})"


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split that exists."""
    matches = [(split, folder / name) for split, names in NAMES.items() for name in names if (folder / name).is_dir()]
    if not any(split == "train" for split, _ in matches):  # then it is a class of that name
        matches = [(split, path) for split, path in matches if path.name != NOVEL]
    folders = dict(matches)
    if len(folders) < len(matches):
        duplicate = next(split for split, count in Counter(split for split, _ in matches).items() if count > 1)
        both = " and ".join(str(path) for split, path in matches if split == duplicate)
        raise TutelageError(f"{both} are both {duplicate} splits; keep one of them")
    return folders


@dataclass(frozen=True)
class Files:
    """Files under one folder, as text: a million paths would be heavy to send to a worker."""

    root: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return Path(self.root, self.names[index])

    def name(self, index: int) -> str:
        return str(self[index])

    def fingerprint(self, index: int) -> str:
        """The path below the root, the size in bytes and the modification time in nanoseconds."""
        status = self[index].stat()
        return f"{self.names[index]} {status.st_size} {status.st_mtime_ns}"


def _by_class(folder: Path) -> dict[str, list[str]]:
    """The images of a split by class, as sorted paths in its folder; unlabelled images are under ``NO_CLASS``."""
    classes = sorted(path for path in folder.iterdir() if _is_class(path))
    if not classes:
        files = _files(folder)
        return {NO_CLASS: files} if files else {}
    return {
        NO_CLASS if path.name in WITHOUT_LABELS else path.name: [f"{path.name}/{name}" for name in _files(path)]
        for path in classes
    }


def _files(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted."""
    return sorted(file.name for file in folder.iterdir() if _is_image(file))


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _labelled(root: Path, by_class: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[Files, torch.Tensor]:
    """A split's files, class by class, and their (N,) int64 labels."""
    names = tuple(file for files in by_class.values() for file in files)
    numbers = [UNLABELLED if name == NO_CLASS else classes.index(name) for name in by_class]
    counts = torch.tensor([len(files) for files in by_class.values()], dtype=torch.int64)
    return Files(str(root), names), torch.tensor(numbers, dtype=torch.int64).repeat_interleave(counts)
