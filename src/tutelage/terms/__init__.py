"""What a student matches: one small file per idea, plain tensors in, per-sample values out."""

from tutelage.terms.attention import AttentionTransfer, attention_map, attention_transfer
from tutelage.terms.cross_entropy import CrossEntropy, cross_entropy
from tutelage.terms.flow import Flow, flow_loss, flow_matrix
from tutelage.terms.hint import Hint, hint_loss, regressor
from tutelage.terms.mimicry import Mimicry
from tutelage.terms.of import Of
from tutelage.terms.relations import AngleRelations, DistanceRelations, angle_relations, distance_relations
from tutelage.terms.similarity import SimilarityPreserving, similarity_preserving
from tutelage.terms.soft_targets import SoftTargets, divergence, labels_and_soft_targets, soft_targets
from tutelage.terms.term import Term, View, Weighted

__all__ = [
    "AngleRelations",
    "AttentionTransfer",
    "CrossEntropy",
    "DistanceRelations",
    "Flow",
    "Hint",
    "Mimicry",
    "Of",
    "SimilarityPreserving",
    "SoftTargets",
    "Term",
    "View",
    "Weighted",
    "angle_relations",
    "attention_map",
    "attention_transfer",
    "cross_entropy",
    "distance_relations",
    "divergence",
    "flow_loss",
    "flow_matrix",
    "hint_loss",
    "labels_and_soft_targets",
    "regressor",
    "similarity_preserving",
    "soft_targets",
]
