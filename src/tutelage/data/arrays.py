"""Check and convert the arrays of a split, from files and from Python objects alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError

Array = NDArray[Any]

CHANNELS = (1, 3, 4)
MOST_CLASSES = 100_000  # one stray label of 2,000,000,000 would otherwise mean as many class names
VOID = 255  # of pixels without a class, in files and arrays of masks
LABELS = "labels are one class per sample: (N,) integers, or (N, C) floats whose rows are probabilities"


def as_images(value: object, what: str) -> Tensor:
    """Convert images: (N, H, W) or (N, H, W, C), uint8 or float in [0, 1] (rounded to 256 levels), to NHWC uint8.

    Raises:
        TutelageError: the shape (for example channels first) or the dtype is not supported, or floats are outside
            [0, 1].
    """
    array = _array(value, what)
    check_image_shape(array.shape, what)
    if array.dtype.kind == "f":
        _refuse(
            ~((array >= 0) & (array <= 1)), array, what, "float images must be in [0, 1]; divide by 255 or save uint8"
        )
        array = np.rint(array * np.float32(255)).astype(np.uint8)
    if array.dtype != np.uint8:
        raise TutelageError(f"{what} is {array.dtype}; images are uint8 from 0 to 255, or floats in [0, 1]")
    return _tensor(array if array.ndim == 4 else array[..., None], value)


def check_image_shape(shape: Sequence[int], what: str) -> None:
    """Refuse shapes other than (N, H, W) and (N, H, W, C) with 1, 3 or 4 channels."""
    shape = tuple(shape)
    if channels_first(shape[1:]):
        raise TutelageError(
            f"{what} has shape {shape}, which looks like channels first (NCHW); make it channels last (NHWC), "
            "(N, H, W, C), with .transpose(0, 2, 3, 1) in NumPy or .permute(0, 2, 3, 1) in torch"
        )
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise TutelageError(f"{what} has shape {shape}; images are (N, H, W) or (N, H, W, C)")
    if len(shape) == 4 and shape[3] not in CHANNELS:
        raise TutelageError(
            f"{what} has shape {shape}, which would be {shape[3]} channels; images are channels last (NHWC), "
            "(N, H, W, C) with 1, 3 or 4 channels"
        )


def channels_first(shape: Sequence[int]) -> bool:
    """Whether an image of this shape must be (C, H, W): its first axis can be channels, and its last axis cannot."""
    if len(shape) != 3:
        return False
    first, _, last = shape
    return (first in CHANNELS and last not in CHANNELS) or (first in (1, 3) and last == 4)


def as_labels(value: object, what: str) -> Tensor:
    """Convert labels: (N,) or (N, 1) integers to (N,) int64; distributions, (N, C) floats, to (N, C) float32.

    Raises:
        TutelageError: the labels have another form; the message names the kind of targets they look like.
    """
    array = _array(value, what)
    kind, columns = array.dtype.kind, array.shape[1] if array.ndim == 2 else 1
    if kind == "f" and columns > 1:
        return _soft_labels(array, value, what)
    if kind not in "iu" or array.ndim not in (1, 2) or columns != 1:
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}{_looks_like(array)}; {LABELS}")
    array = array.reshape(-1)
    _refuse(array < -1, array, what, "labels are 0 or more, or -1 for no label")
    _refuse(array >= MOST_CLASSES, array, what, f"labels are class numbers below {MOST_CLASSES}")
    return _tensor(array.astype(np.int64, copy=False), value)


def _looks_like(array: Array) -> str:
    """The likely kind of targets that are not class labels, for an error message."""
    if array.dtype.kind == "f":
        return ", which looks like regression targets (cast whole numbers to integers if they are classes)"
    if array.dtype.kind not in "iub" or array.ndim != 2 or not ((array == 0) | (array == 1)).all():
        return ""
    if (array.sum(1) == 1).all():
        return ", which looks like one-hot labels (take their .argmax(1))"
    return ", which looks like multi-label targets, several classes per sample"


def _soft_labels(array: Array, value: object, what: str) -> Tensor:
    _refuse(~((array >= 0) & (array <= np.inf)), array, what, "soft labels are probabilities, 0 or more")
    sums = array.sum(1, dtype=np.float64)
    off = ~(np.abs(sums - 1) <= 1e-3) & (array != 0).any(1)  # a row of zeros is no label
    if off.any() and ((array == 0) | (array == 1)).all():
        raise TutelageError(
            f"{what} has {int(off.sum())} rows of zeros and ones that do not sum to 1, which looks like multi-label "
            f"targets, several classes per sample; {LABELS}"
        )
    rule = "every row of soft labels sums to 1, or is all 0 for no label"
    _refuse(off, sums, f"the sum over classes in {what}", rule)
    return _tensor(array.astype(np.float32, copy=False), value)


def as_floats(value: object, what: str, form: str, *, axes: Sequence[int], missing: bool) -> Tensor:
    """Convert numbers or booleans to float32; they must be finite or, if ``missing``, NaN.

    Raises:
        TutelageError: anything else; ``form`` says what is expected.
    """
    array = _array(value, what)
    if array.dtype.kind not in "fiub" or array.ndim not in axes or 0 in array.shape[1:]:
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; expected {form}, floats")
    array = array.astype(np.float32, copy=False)
    if missing:
        _refuse(np.isinf(array), array, what, "values are finite, or NaN where they are unknown")
    else:
        _refuse(~np.isfinite(array), array, what, "values are finite; remove or replace others")
    return _tensor(array, value)


def as_integers(value: object, what: str, form: str, *, low: int, high: int) -> Tensor:
    """Convert (N, L) integers from ``low`` to ``high`` to int64.

    Raises:
        TutelageError: anything else; ``form`` says what is expected.
    """
    array = _array(value, what)
    if array.dtype.kind not in "iu" or array.ndim != 2 or 0 in array.shape[1:]:
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; expected {form}, integers")
    _refuse((array < low) | (array > high), array, what, f"expected {form} from {low} to {high}")
    return _tensor(array.astype(np.int64, copy=False), value)


def as_masks(value: object, what: str) -> Tensor:
    """Convert a class for each pixel, (N, H, W) integers or booleans, to int16; -1 and 255 mean void and become -1.

    Raises:
        TutelageError: another shape or dtype, or a number that is no class.
    """
    array = _array(value, what)
    if array.dtype.kind not in "iub" or array.ndim != 3 or 0 in array.shape[1:]:
        colour = ": colours are no class numbers" if array.ndim == 4 and array.shape[3] in CHANNELS else ""
        raise TutelageError(
            f"{what} is {array.dtype} of shape {array.shape}{colour}; masks are (N, H, W) integers, a class for each "
            "pixel, -1 or 255 for void"
        )
    if array.dtype != np.bool_:
        _refuse(
            (array < -1) | (array > VOID),
            array,
            what,
            f"classes are 0 to {VOID - 1}, and -1 or {VOID} is void",
        )
    stored = array.astype(np.int16, copy=False)
    return _tensor(np.where(stored == VOID, np.int16(-1), stored) if (stored == VOID).any() else stored, value)


def as_index(value: object, samples: int, what: str) -> Tensor:
    """Convert the index of samples, (N,) integers of 0 or more, to int64."""
    array = _array(value, what)
    if array.dtype.kind not in "iu" or array.shape != (samples,):
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; an index is ({samples},) integers")
    _refuse((array < 0) | (array > np.iinfo(np.int64).max), array, what, "numbers of samples are 0 or more")
    return _tensor(array.astype(np.int64, copy=False), value)


def check_unique(index: Tensor, what: str) -> None:
    """Refuse an index in which two samples have the same number."""
    array = index.numpy()
    first = np.zeros(len(array), np.bool_)
    first[np.unique(array, return_index=True)[1]] = True
    _refuse(~first, array, what, "each sample needs its own number")


def as_clean_labels(value: object, samples: int, classes: int, what: str) -> Tensor:
    """Convert clean labels, (N,) class numbers or -1 if unknown, to int64."""
    array = _array(value, what)
    if array.dtype.kind not in "iu" or array.shape != (samples,):
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; clean labels are ({samples},) integers")
    _refuse((array < -1) | (array >= classes), array, what, f"clean labels are 0 to {classes - 1}, or -1 if unknown")
    return _tensor(array.astype(np.int64, copy=False), value)


def as_trusted(value: object, samples: int, what: str) -> Tensor:
    """Convert the trusted marks, (N,) booleans, to a tensor."""
    array = _array(value, what)
    if array.dtype != np.bool_ or array.shape != (samples,):
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; trusted is ({samples},) booleans")
    return _tensor(array, value)


def _array(value: object, what: str) -> Array:
    """Return the values as a NumPy array; it shares memory with a tensor on the CPU."""
    if isinstance(value, Tensor):
        try:
            value = value.detach()
            return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, meta, quantized, eight-bit floats
            raise TutelageError(
                f"{what} is a {value.layout} tensor of {value.dtype} on {value.device}, which cannot become a "
                "NumPy array; give a dense tensor or a NumPy array"
            ) from error
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TutelageError(f"{what} is a {type(value).__name__}; give a tensor or a NumPy array")
    return value


def _tensor(array: Array, value: object) -> Tensor:
    """Return the array as a contiguous tensor, or ``value`` itself, on its device, if it is equal to that."""
    array = np.ascontiguousarray(array)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if (
        isinstance(value, Tensor)
        and value.is_contiguous()
        and (value.dtype, value.shape) == (tensor.dtype, tensor.shape)
    ):
        return value.detach() if value.requires_grad else value
    return tensor


def _refuse(bad: NDArray[np.bool_], values: Array, what: str, rule: str) -> None:
    """Raise an error about the first bad value, if any, with its position and ``rule``."""
    if bad.any():
        position = np.unravel_index(int(bad.argmax()), bad.shape)
        where = ", ".join(str(int(i)) for i in position)
        raise TutelageError(f"{what} is {values[position]} at [{where}] ({int(bad.sum())} such values); {rule}")
