"""Conditions: label noise, missing labels, subsets and class imbalance of a training split.

Each condition is a frozen value that turns one data set into another. Only the training split changes: clean labels are
stored, the same seed changes the same samples, and the record has the realised values. The test split never changes.
"""

from tutelage.data.conditions.class_flips import CIFARNoise, ClassFlips
from tutelage.data.conditions.condition import Condition
from tutelage.data.conditions.confusion import ConfusionNoise, FeatureNoise
from tutelage.data.conditions.human import HumanLabels
from tutelage.data.conditions.imbalance import LongTail, PowerLawImbalance, StepImbalance
from tutelage.data.conditions.imprecise import Imprecise
from tutelage.data.conditions.instance import InstanceNoise
from tutelage.data.conditions.noise import AsymmetricNoise, MissingLabels, PairFlip, SymmetricNoise, UniformNoise
from tutelage.data.conditions.outside import OutsideImages
from tutelage.data.conditions.parse import parse_imbalance, parse_noise
from tutelage.data.conditions.subset import Subset
from tutelage.data.conditions.trusted import Trusted

__all__ = [
    "AsymmetricNoise",
    "CIFARNoise",
    "ClassFlips",
    "Condition",
    "ConfusionNoise",
    "FeatureNoise",
    "HumanLabels",
    "Imprecise",
    "InstanceNoise",
    "LongTail",
    "MissingLabels",
    "OutsideImages",
    "PairFlip",
    "PowerLawImbalance",
    "StepImbalance",
    "Subset",
    "SymmetricNoise",
    "Trusted",
    "UniformNoise",
    "parse_imbalance",
    "parse_noise",
]
