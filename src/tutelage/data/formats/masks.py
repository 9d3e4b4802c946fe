"""A folder of images with masks, which are a class for each pixel."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tutelage.data.arrays import VOID
from tutelage.data.assemble import Reading, assemble
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data
from tutelage.data.formats.folder import SUFFIXES, WITHOUT_LABELS, Files
from tutelage.data.formats.mask_files import MaskedImages
from tutelage.data.targets import Masks
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import read_file

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
IMAGES, MASKS, CLASSES, PNG = "images", "masks", "classes.txt", ".png"
LAYOUT = (
    "images belong in train/images and test/images (and, if you like, val/images), and the mask of each, a PNG of the "
    "same name, in train/masks and test/masks; or all in images and masks, and a share of them becomes the test split"
)


def load(
    folder: Path,
    image_size: int | None = None,
    *,
    test: float | None = None,
    skip_bad: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """``train/images/*`` and ``train/masks/*.png``, and the same for ``test`` and ``val``; or ``images`` and ``masks``.

    A mask has the name of its image and is a grey or palette PNG whose values, or indices of the palette, are class
    numbers; 255 is void. ``classes.txt`` names the classes, one a line, from number 0; without it, the numbers are
    their names. Images in a folder ``unlabelled`` have no masks and join the training split.

    Without a ``test`` folder the validation folder is the test split; without both, a share of the images becomes it.
    With an ``image_size`` images and masks are scaled and cut alike, masks to the nearest pixel. The EXIF orientation
    of an image is applied, and its mask must fit the upright image. Masks are kept in memory, at two bytes a pixel.

    Args:
        folder: where ``train`` is, or ``images`` and ``masks`` are.
        image_size: side in pixels to scale and cut every image to; ``None`` if they have one size already.
        test: the share that becomes the test split where there is no such folder; by default 0.2.
        skip_bad: leave out images that cannot be decoded, or whose masks cannot, and count them in a warning and the
            record.
        reading: how images are read during training. They are never read whole: random boxes would not fit the masks.

    Raises:
        TutelageError: a folder or a mask is missing, or an image or a mask cannot be used; the text names it.
    """
    names = _class_names(folder / CLASSES)
    splits = _splits(folder)
    skipped: dict[str, int] = {}
    if skip_bad:
        readable = {split: masked.readable(image_size) for split, masked in splits.items()}
        missing = {split: len(masked) - len(readable[split]) for split, masked in splits.items()}
        splits, skipped = readable, {split: count for split, count in missing.items() if count}
    if skipped:
        warnings.warn(
            f"masks:{folder}: {sum(skipped.values())} images are left out, since they or their masks cannot be read",
            TutelageWarning,
            stacklevel=4,
        )
    masks = {split: masked.decoded_masks(image_size, len(names) or None) for split, masked in splits.items()}
    highest = max(int(stacked.max()) for stacked in masks.values())
    lowest = min(int(stacked.min()) for stacked in masks.values())
    if (lowest, highest) == (UNLABELLED, 0) and not any(None in masked.masks for masked in splits.values()):
        raise TutelageError(
            f"the masks of {folder} have no values but 0 and {VOID}, and {VOID} means void; save classes as 0, 1, …"
        )
    return assemble(
        f"masks:{folder}",
        names or tuple(str(number) for number in range(highest + 1)),
        {split: (masked.images, masks[split]) for split, masked in splits.items()},
        image_size=image_size,
        record={"source": "masks"} | ({"skipped": skipped} if skipped else {}),
        test=test,
        reading=replace(reading, whole=False),
        targets=Masks(),
    )


def _class_names(file: Path) -> tuple[str, ...]:
    """The lines of ``classes.txt``; empty if there is no such file."""
    if not file.exists():
        return ()
    try:
        text = read_file(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TutelageError(f"{file} is not UTF-8 text; save it as such") from error
    names = [line.strip() for line in text.strip().splitlines()]
    if not all(names):
        raise TutelageError(f"{file} has an empty line or none; it has the names of the classes, one a line, from 0")
    return tuple(names)


def _splits(folder: Path) -> dict[str, MaskedImages]:
    """The images and masks of each split."""
    present = [(split, name) for split, names in SPLITS.items() for name in names if (folder / name).is_dir()]
    parts = dict(present)
    if len(parts) < len(present):
        raise TutelageError(f"{folder} has several of the folders {', '.join(SPLITS['validation'])}; keep one of them")
    if parts and ("train" not in parts or len(parts) == 1):
        raise TutelageError(f"{folder} has no folder {'test' if 'train' in parts else 'train'}; {LAYOUT}")
    splits = {split: _masked_images(folder, f"{name}/") for split, name in parts.items()}
    splits = splits or {"train": _masked_images(folder, "")}
    for name in WITHOUT_LABELS:
        if (folder / name).is_dir():
            splits["train"] = splits["train"].with_unmasked([f"{name}/{file}" for file in _images(folder / name)])
    return splits


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(file.name for file in files if file.is_file())


def _masked_images(root: Path, part: str) -> MaskedImages:
    """The images of a split, each of which must have a mask; ``part`` ends in a slash or is empty."""
    images, masks = root / f"{part}{IMAGES}", root / f"{part}{MASKS}"
    for folder in (images, masks):
        if not folder.is_dir():
            raise TutelageError(f"there is no folder {folder}; {LAYOUT}")
    names = _images(images)
    if not names:
        raise TutelageError(f"{images} has no image; {LAYOUT}")
    stem, count = Counter(Path(name).stem for name in names).most_common(1)[0]
    if count > 1:
        raise TutelageError(f"{images} has {count} images named {stem}, whose masks would be the same; rename them")
    files = {file.stem: file.name for file in masks.iterdir() if file.suffix.lower() == PNG and file.is_file()}
    for name in names:
        if (stem := Path(name).stem) not in files:
            remedy = f"add it, or move the image to {root / WITHOUT_LABELS[0]}"
            if others := sorted(file.name for file in masks.iterdir() if file.stem == stem):
                remedy = f"{others[0]} is no PNG, and other formats may change class numbers: save it as PNG"
            raise TutelageError(f"the image {images / name} has no mask {masks / stem}{PNG}; {remedy}")
    if superfluous := len(files) - len(names):
        warnings.warn(
            f"{masks} has {superfluous} masks without an image, which are ignored", TutelageWarning, stacklevel=6
        )
    paths = Files(str(root), tuple(f"{part}{IMAGES}/{name}" for name in names))
    return MaskedImages(paths, tuple(f"{part}{MASKS}/{files[Path(name).stem]}" for name in names))
