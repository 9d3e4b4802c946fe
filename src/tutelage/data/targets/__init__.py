"""Kinds of targets: what the labels of a split are; one file per kind."""

from tutelage.data.targets.base import Targets
from tutelage.data.targets.boxes import Boxes
from tutelage.data.targets.classes import Classes, Grades, class_counts
from tutelage.data.targets.maps import Maps
from tutelage.data.targets.masks import Masks
from tutelage.data.targets.multi_label import MultiLabel
from tutelage.data.targets.quantities import Quantities
from tutelage.data.targets.strings import Strings
from tutelage.data.targets.track import Track

__all__ = [
    "Boxes",
    "Classes",
    "Grades",
    "Maps",
    "Masks",
    "MultiLabel",
    "Quantities",
    "Strings",
    "Targets",
    "Track",
    "class_counts",
]
