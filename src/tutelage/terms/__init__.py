"""Losses as modules: one file per idea, a function of plain tensors and the ``Term`` that applies it to networks.

The functions are exported by ``tutelage.losses``.
"""

from tutelage.terms.attention import AttentionTransfer
from tutelage.terms.boundaries import ActivationBoundaries
from tutelage.terms.channels import ChannelDivergence
from tutelage.terms.congruence import CorrelationCongruence
from tutelage.terms.consistency import SoftmaxMSE
from tutelage.terms.contrastive import InBatchContrast
from tutelage.terms.contrastive_memory import MemoryContrast
from tutelage.terms.correlation import InterClassRelation, IntraClassRelation
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.decoupled import DecoupledSoftTargets
from tutelage.terms.factor import FactorTransfer, Paraphrase
from tutelage.terms.flow import Flow
from tutelage.terms.hint import Hint
from tutelage.terms.knowledge_adjustment import AdjustedSoftTargets
from tutelage.terms.maps import MapCrossEntropy, MapSoftTargets
from tutelage.terms.mimicry import Mimicry
from tutelage.terms.multi_level import MultiLevelCorrelations
from tutelage.terms.on_role import OnRole
from tutelage.terms.overhaul import FeatureOverhaul
from tutelage.terms.pixels import PixelCrossEntropy, PixelSoftTargets
from tutelage.terms.probabilistic import ProbabilisticTransfer
from tutelage.terms.refined import RefinedSoftTargets
from tutelage.terms.relations import AngleRelations, DistanceRelations
from tutelage.terms.review import KnowledgeReview
from tutelage.terms.selectivity import NeuronSelectivity
from tutelage.terms.similarity import SimilarityPreserving
from tutelage.terms.sinkhorn import SinkhornDivergence
from tutelage.terms.soft_targets import SoftTargets, labels_and_soft_targets
from tutelage.terms.standardization import StandardizedSoftTargets
from tutelage.terms.term import Term, View, Weighted
from tutelage.terms.triplets import Triplets
from tutelage.terms.variational import VariationalInformation
from tutelage.terms.virtual_teacher import VirtualTeacher

__all__ = [
    "ActivationBoundaries",
    "AdjustedSoftTargets",
    "AngleRelations",
    "AttentionTransfer",
    "ChannelDivergence",
    "CorrelationCongruence",
    "CrossEntropy",
    "DecoupledSoftTargets",
    "DistanceRelations",
    "FactorTransfer",
    "FeatureOverhaul",
    "Flow",
    "Hint",
    "InBatchContrast",
    "InterClassRelation",
    "IntraClassRelation",
    "KnowledgeReview",
    "MapCrossEntropy",
    "MapSoftTargets",
    "MemoryContrast",
    "Mimicry",
    "MultiLevelCorrelations",
    "NeuronSelectivity",
    "OnRole",
    "Paraphrase",
    "PixelCrossEntropy",
    "PixelSoftTargets",
    "ProbabilisticTransfer",
    "RefinedSoftTargets",
    "SimilarityPreserving",
    "SinkhornDivergence",
    "SoftTargets",
    "SoftmaxMSE",
    "StandardizedSoftTargets",
    "Term",
    "Triplets",
    "VariationalInformation",
    "View",
    "VirtualTeacher",
    "Weighted",
    "labels_and_soft_targets",
]
