"""Parse conditions from the text of the command line and of configurations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

from tutelage.data.conditions.class_flips import CIFARNoise, ClassFlips
from tutelage.data.conditions.condition import Condition
from tutelage.data.conditions.confusion import ConfusionNoise, FeatureNoise
from tutelage.data.conditions.human import HumanLabels
from tutelage.data.conditions.imbalance import LongTail, PowerLawImbalance, StepImbalance
from tutelage.data.conditions.imprecise import Imprecise, Model
from tutelage.data.conditions.instance import InstanceNoise
from tutelage.data.conditions.noise import AsymmetricNoise, MissingLabels, PairFlip, SymmetricNoise, UniformNoise
from tutelage.data.conditions.outside import OutsideImages
from tutelage.data.conditions.trusted import Trusted
from tutelage.errors import TutelageError, unknown

# A plus sign before another noise: `kind:...` or a rate. A plus sign in a file name does not match.
PLUS = re.compile(r"(?<!^)\+(?=\s*(?:[a-z]+:|[\d.]+\s*(?:\+|$)))")


def parse_noise(text: str | float, seed: int = 0) -> tuple[Condition, ...]:
    """Parse one or several noises, in the order in which they are applied; a rate of 0 means no noise.

    Args:
        text: ``0.4`` or ``symmetric:0.4``, ``uniform:0.4``, ``pair:0.4``, ``instance:0.4``, ``missing:0.4``,
            ``matrix:FILE`` (see ``AsymmetricNoise.read``),
            ``human:FILE:COLUMN`` (see ``HumanLabels``), ``imprecise:FILE:0.9`` or ``imprecise:FILE:geometric:0.5``
            (see ``Imprecise``; after all others, since labels become soft),
            ``asymmetric:0.4`` (see ``CIFARNoise``), ``flip:0.4:3:5,5:3`` (see ``ClassFlips``),
            ``confusion:0.4:FILE`` (see ``ConfusionNoise``), ``features:0.4:FILE`` (see ``FeatureNoise``),
            ``outside:0.4:DATA`` or ``outside:0.4:FILE:DATA`` (see ``OutsideImages``, FILE has the confusion); or
            several, each applied to the result of the previous one: ``0.4+missing:0.5``. ``trusted:10`` is the opposite
            of a noise: it verifies labels (see ``Trusted``). Each kind may occur once, because the same seed would
            change the same samples again. Human labels must come first, because they replace all others.
        seed: the random seed of the noises.

    Raises:
        TutelageError: a kind is unknown, repeated or in the wrong order, a rate is not a number from 0 to 1, or a file
            cannot be used.
    """
    named = [_one_noise(part.strip(), seed) for part in PLUS.split(str(text).strip())]
    noises = tuple(noise for noise in named if noise is not None)
    kinds = [type(noise) for noise in noises]
    if twice := [kind.__name__ for kind in kinds if kinds.count(kind) > 1]:
        raise TutelageError(f"the noise {text!r} has {twice[0]} {len(twice)} times; write each kind once")
    if HumanLabels in kinds[1:]:
        raise TutelageError(f"the noise {text!r} has human labels after others, which they replace; write them first")
    return noises


def _one_noise(text: str, seed: int) -> Condition | None:
    kind, colon, argument = text.partition(":")
    if not colon and kind not in NOISES:
        kind, argument = "symmetric", kind
    if kind not in NOISES:
        raise unknown("noise", kind, NOISES)
    return NOISES[kind](argument, seed, text)


def parse_imbalance(text: str) -> Condition:
    """Parse a class imbalance.

    Args:
        text: ``powerlaw:0.2`` (gamma), ``powerlaw:0.2:500:25`` (gamma, n_max, n_min), ``longtail:0.01`` (factor) or
            ``step:0.5:0.1`` (share of rare classes, factor).

    Raises:
        TutelageError: the law is unknown, or its numbers are invalid.
    """
    kind, *numbers = text.strip().split(":")
    if kind not in IMBALANCES:
        raise unknown(
            "imbalance", kind, IMBALANCES, f"For example: {', '.join(law[1][0] for law in IMBALANCES.values())}."
        )
    law, examples = IMBALANCES[kind]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if len(values) not in [example.count(":") for example in examples]:
        raise TutelageError(
            f"the imbalance {text!r} is not {kind} with its numbers; write {' or '.join(examples)}, for example"
        )
    return law(*values)


def _by_rate(kind: Callable[[float, int], Condition], argument: str, seed: int, text: str) -> Condition | None:
    try:
        rate = float(argument)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise TutelageError(
            f"the noise {text!r} has no rate from 0 to 1; write 0.4, symmetric:0.4 or uniform:0.4, for example"
        )
    return kind(rate, seed) if rate > 0 else None


def _rate_and_rest(argument: str, text: str, example: str) -> tuple[float, str]:
    """``0.4:REST`` as a rate from 0 to 1 and the rest."""
    first, _, rest = argument.partition(":")
    try:
        rate = float(first)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1 or not rest:
        raise TutelageError(f"the noise {text!r} is not a rate from 0 to 1 and what it needs; write {example}")
    return rate, rest


def _flip(argument: str, seed: int, text: str) -> Condition | None:
    rate, rest = _rate_and_rest(argument, text, "flip:0.4:3:5,5:3, for example (class 3 becomes 5, and 5 becomes 3)")
    pairs = [tuple(name.strip() for name in pair.split(":")) for pair in rest.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise TutelageError(f"the flips of {text!r} are not pairs of classes; write flip:0.4:3:5,5:3, for example")
    return ClassFlips(rate, seed, [(old, new) for old, new in pairs]) if rate else None


def _confusion(argument: str, seed: int, text: str) -> Condition | None:
    rate, file = _rate_and_rest(argument, text, "confusion:0.4:FILE, a .csv, .npy or .json of C x C")
    return ConfusionNoise(rate, file, seed) if rate else None


def _features(argument: str, seed: int, text: str) -> Condition | None:
    rate, file = _rate_and_rest(argument, text, "features:0.4:FILE, an .npy of a network's class probabilities")
    return FeatureNoise(rate, file) if rate else None


def _outside(argument: str, seed: int, text: str) -> Condition | None:
    rate, rest = _rate_and_rest(argument, text, "outside:0.4:DATA, for example outside:0.4:npz:FILE")
    file, _, data = rest.partition(":")
    matrix = file if data and file.endswith((".csv", ".npy", ".json")) else None
    return OutsideImages(rate, data if matrix else rest, seed, matrix) if rate else None


def _power_law(gamma: float, *ends: float) -> Condition:
    if not all(end.is_integer() for end in ends):
        ends_text = " and ".join(f"{end:g}" for end in ends)
        raise TutelageError(f"n_max and n_min of a power law are whole numbers of samples, got {ends_text}")
    return PowerLawImbalance(gamma, *map(int, ends))


def _matrix(argument: str, seed: int, text: str) -> Condition:
    if not argument:
        raise TutelageError(f"the noise {text!r} names no file; write matrix:FILE, a .csv, .npy or .json of C x C")
    return AsymmetricNoise.read(argument, seed)


def _human(argument: str, seed: int, text: str) -> Condition:
    file, _, column = argument.rpartition(":")
    if not file or not column:
        raise TutelageError(
            f"the noise {text!r} does not name a file and a column; write human:FILE:COLUMN, an .npz or .csv of labels"
        )
    return HumanLabels(file, column)


def _imprecise(argument: str, seed: int, text: str) -> Condition:
    file, _, value = argument.rpartition(":")
    named: list[Model] = [model for model in get_args(Model) if file.endswith(f":{model}")]
    model = named[0] if named else "parent"
    file = file.removesuffix(f":{model}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not file or math.isnan(number):
        raise TutelageError(
            f"the noise {text!r} has no file of a hierarchy and number; write imprecise:FILE:0.9, "
            "imprecise:FILE:geometric:0.5 or imprecise:FILE:poisson:1.5"
        )
    return Imprecise(file, number, model, seed)


def _trusted(argument: str, seed: int, text: str) -> Condition:
    if not argument.isdecimal() or int(argument) < 1:
        raise TutelageError(
            f"the noise {text!r} has no number of verified samples per class; write trusted:10, for example"
        )
    return Trusted(int(argument), seed)


NOISES: Mapping[str, Callable[[str, int, str], Condition | None]] = {
    "symmetric": partial(_by_rate, SymmetricNoise),
    "uniform": partial(_by_rate, UniformNoise),
    "pair": partial(_by_rate, PairFlip),
    "instance": partial(_by_rate, InstanceNoise),
    "asymmetric": partial(_by_rate, CIFARNoise),
    "flip": _flip,
    "confusion": _confusion,
    "features": _features,
    "outside": _outside,
    "missing": partial(_by_rate, MissingLabels),
    "trusted": _trusted,
    "imprecise": _imprecise,
    "matrix": _matrix,
    "human": _human,
}

IMBALANCES: Mapping[str, tuple[Callable[..., Condition], tuple[str, ...]]] = {
    "powerlaw": (_power_law, ("powerlaw:0.2", "powerlaw:0.2:500:25")),
    "longtail": (LongTail, ("longtail:0.01",)),
    "step": (StepImbalance, ("step:0.5:0.1",)),
}
