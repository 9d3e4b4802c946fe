"""Data sets: where they come from, what is done to their labels on purpose, how batches are made of them.

``open_data`` names a data set; it has a training and a test split and maybe a validation split, images as uint8
and labels that are hard, soft or absent. Conditions (wrong labels as ``SymmetricNoise``, few samples as ``Subset``,
rare classes as ``PowerLawImbalance``) turn one data set into another and leave a record. ``Batches`` goes through a
split in an order that (seed, epoch) alone decides.
"""

from tutelage.data.batch import Batch
from tutelage.data.conditions import (
    AsymmetricNoise,
    HumanLabels,
    InstanceNoise,
    LongTail,
    MissingLabels,
    PairFlip,
    PowerLawImbalance,
    StepImbalance,
    Subset,
    SymmetricNoise,
    Trusted,
    UniformNoise,
)
from tutelage.data.data import Data, Split
from tutelage.data.loader import Batches, evaluation_batches
from tutelage.data.modality import Modality, Pixels, Tokens, Vectors, Waveforms
from tutelage.data.open import open_data
from tutelage.data.targets import Classes, MultiLabel, Quantities, Strings, Targets
from tutelage.data.views import CropsAndFlips, NoAugmentation, Views

__all__ = [
    "AsymmetricNoise",
    "Batch",
    "Batches",
    "Classes",
    "CropsAndFlips",
    "Data",
    "HumanLabels",
    "InstanceNoise",
    "LongTail",
    "MissingLabels",
    "Modality",
    "MultiLabel",
    "NoAugmentation",
    "PairFlip",
    "Pixels",
    "PowerLawImbalance",
    "Quantities",
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
