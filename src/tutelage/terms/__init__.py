"""Losses as modules: one file per idea, a function of plain tensors and the ``Term`` that applies it to networks.

The functions are exported by ``tutelage.losses``.
"""

from tutelage.terms.attention import AttentionTransfer
from tutelage.terms.consistency import SoftmaxMSE
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.flow import Flow
from tutelage.terms.hint import Hint
from tutelage.terms.knowledge_adjustment import AdjustedSoftTargets
from tutelage.terms.mimicry import Mimicry
from tutelage.terms.on_role import OnRole
from tutelage.terms.relations import AngleRelations, DistanceRelations
from tutelage.terms.similarity import SimilarityPreserving
from tutelage.terms.sinkhorn import SinkhornDivergence
from tutelage.terms.soft_targets import SoftTargets, labels_and_soft_targets
from tutelage.terms.term import Term, View, Weighted
from tutelage.terms.triplets import Triplets

__all__ = [
    "AdjustedSoftTargets",
    "AngleRelations",
    "AttentionTransfer",
    "CrossEntropy",
    "DistanceRelations",
    "Flow",
    "Hint",
    "Mimicry",
    "OnRole",
    "SimilarityPreserving",
    "SinkhornDivergence",
    "SoftTargets",
    "SoftmaxMSE",
    "Term",
    "Triplets",
    "View",
    "Weighted",
    "labels_and_soft_targets",
]
