"""Conditions by name, as the command line and the configuration write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from tutelage.data.conditions.condition import Condition
from tutelage.data.conditions.human import HumanLabels
from tutelage.data.conditions.imbalance import LongTail, PowerLawImbalance, StepImbalance
from tutelage.data.conditions.instance import InstanceNoise
from tutelage.data.conditions.noise import AsymmetricNoise, MissingLabels, PairFlip, SymmetricNoise, UniformNoise
from tutelage.errors import TutelageError, unknown


def parse_noise(text: str | float, seed: int = 0) -> Condition | None:
    """The noise that a text names; ``None`` for a rate of 0.

    Args:
        text: ``0.4`` or ``symmetric:0.4``, ``uniform:0.4``, ``pair:0.4``, ``instance:0.4``, ``missing:0.4``,
            ``matrix:FILE`` (see ``AsymmetricNoise.read``) or ``human:FILE:COLUMN`` (see ``HumanLabels``).
        seed: of what is drawn.

    Raises:
        TutelageError: the kind is unknown, the rate is not a number from 0 to 1, or the file cannot be used.
    """
    kind, colon, rest = str(text).strip().partition(":")
    if not colon and kind not in NOISES:
        kind, rest = "symmetric", kind
    if kind not in NOISES:
        raise unknown("noise", kind, NOISES)
    return NOISES[kind](rest, seed, str(text))


def parse_imbalance(text: str) -> Condition:
    """The imbalance that a text names.

    Args:
        text: ``powerlaw:0.2`` (gamma), ``longtail:0.01`` (factor) or ``step:0.5:0.1`` (share of rare classes, factor).

    Raises:
        TutelageError: the law is unknown, or its numbers cannot be.
    """
    kind, *numbers = text.strip().split(":")
    if kind not in IMBALANCES:
        raise unknown("imbalance", kind, IMBALANCES, f"Write {', '.join(law[1] for law in IMBALANCES.values())}, say.")
    law, example = IMBALANCES[kind]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if len(values) != example.count(":"):
        raise TutelageError(f"the imbalance {text!r} is not {kind} with its numbers; write {example}, say")
    return law(*values)


def _by_rate(kind: Callable[[float, int], Condition], rest: str, seed: int, text: str) -> Condition | None:
    try:
        rate = float(rest)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise TutelageError(f"the noise {text!r} has no rate from 0 to 1; write 0.4, symmetric:0.4 or uniform:0.4, say")
    return kind(rate, seed) if rate > 0 else None


def _matrix(rest: str, seed: int, text: str) -> Condition:
    if not rest:
        raise TutelageError(f"the noise {text!r} names no file; write matrix:FILE, a .csv, .npy or .json of C x C")
    return AsymmetricNoise.read(rest, seed)


def _human(rest: str, seed: int, text: str) -> Condition:
    file, _, column = rest.rpartition(":")
    if not file or not column:
        raise TutelageError(
            f"the noise {text!r} does not name a file and a column; write human:FILE:COLUMN, an .npz or .csv of labels"
        )
    return HumanLabels(file, column)


NOISES: Mapping[str, Callable[[str, int, str], Condition | None]] = {
    "symmetric": partial(_by_rate, SymmetricNoise),
    "uniform": partial(_by_rate, UniformNoise),
    "pair": partial(_by_rate, PairFlip),
    "instance": partial(_by_rate, InstanceNoise),
    "missing": partial(_by_rate, MissingLabels),
    "matrix": _matrix,
    "human": _human,
}

IMBALANCES: Mapping[str, tuple[Callable[..., Condition], str]] = {
    "powerlaw": (PowerLawImbalance, "powerlaw:0.2"),
    "longtail": (LongTail, "longtail:0.01"),
    "step": (StepImbalance, "step:0.5:0.1"),
}
