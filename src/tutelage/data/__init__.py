"""Data sets: how they are read, conditions such as label noise and class imbalance, and batches.

``open_data`` opens a data set by name: a training and a test split, optionally a validation split, with images as uint8
and labels that are hard, soft or missing. Conditions (label noise as ``SymmetricNoise``, few samples as ``Subset``,
class imbalance as ``PowerLawImbalance``) turn one data set into another and add to its record. ``Batches`` iterates
over a split in an order that depends only on (seed, epoch).
"""

from tutelage.data.batch import Batch
from tutelage.data.conditions import (
    AsymmetricNoise,
    CIFARNoise,
    ClassFlips,
    ConfusionNoise,
    FeatureNoise,
    HumanLabels,
    Imprecise,
    InstanceNoise,
    LongTail,
    MissingLabels,
    OutsideImages,
    PairFlip,
    PowerLawImbalance,
    StepImbalance,
    Subset,
    SymmetricNoise,
    Trusted,
    UniformNoise,
)
from tutelage.data.data import Data, Split
from tutelage.data.hierarchy import Hierarchy
from tutelage.data.loader import Batches, evaluation_batches
from tutelage.data.modality import Modality, Pixels, Tokens, Vectors, Waveforms
from tutelage.data.open import open_data
from tutelage.data.targets import Boxes, Classes, Grades, Maps, Masks, MultiLabel, Quantities, Strings, Targets
from tutelage.data.views import (
    ColourJitter,
    CropsAndFlips,
    NoAugmentation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    RandomViews,
    Views,
)

__all__ = [
    "AsymmetricNoise",
    "Batch",
    "Batches",
    "Boxes",
    "CIFARNoise",
    "ClassFlips",
    "Classes",
    "ColourJitter",
    "ConfusionNoise",
    "CropsAndFlips",
    "Data",
    "FeatureNoise",
    "Grades",
    "Hierarchy",
    "HumanLabels",
    "Imprecise",
    "InstanceNoise",
    "LongTail",
    "Maps",
    "Masks",
    "MissingLabels",
    "Modality",
    "MultiLabel",
    "NoAugmentation",
    "OutsideImages",
    "PairFlip",
    "Pixels",
    "PowerLawImbalance",
    "Quantities",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomViews",
    "Split",
    "StepImbalance",
    "Strings",
    "Subset",
    "SymmetricNoise",
    "Targets",
    "Tokens",
    "Trusted",
    "UniformNoise",
    "Vectors",
    "Views",
    "Waveforms",
    "evaluation_batches",
    "open_data",
]
