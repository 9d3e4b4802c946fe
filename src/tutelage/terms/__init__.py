"""What a student matches: one small file per idea, plain tensors in, per-sample values out."""

from tutelage.terms.adversarial import Fooling, Hinge, hinge
from tutelage.terms.attention import AttentionTransfer, attention_map, attention_transfer
from tutelage.terms.consistency import SoftmaxMSE, softmax_mse
from tutelage.terms.cross_entropy import CrossEntropy, cross_entropy
from tutelage.terms.flow import Flow, flow_loss, flow_matrix
from tutelage.terms.gambler import Gambler, SoftBet, check_payoff, gambler, soft_bet
from tutelage.terms.generated import Generated, Taught
from tutelage.terms.hint import Hint, hint_loss, regressor
from tutelage.terms.knowledge_adjustment import AdjustedSoftTargets, label_smooth_replacement, probability_shift
from tutelage.terms.local_clustering import LocalClustering, local_clustering
from tutelage.terms.mimicry import Mimicry
from tutelage.terms.of import Of
from tutelage.terms.relations import AngleRelations, DistanceRelations, angle_relations, distance_relations
from tutelage.terms.reverse_kl import Entropy, LearnedLabels, entropy, reverse_kl
from tutelage.terms.similarity import SimilarityPreserving, similarity_preserving
from tutelage.terms.simplex import GaussianSimplex, gaussian_simplex
from tutelage.terms.sinkhorn import SinkhornDivergence, sinkhorn_divergence
from tutelage.terms.soft_targets import SoftTargets, divergence, labels_and_soft_targets, soft_targets
from tutelage.terms.term import Term, View, Weighted
from tutelage.terms.triplets import Triplets, collapsed, draw_triplets, triplet_loss

__all__ = [
    "AdjustedSoftTargets",
    "AngleRelations",
    "AttentionTransfer",
    "CrossEntropy",
    "DistanceRelations",
    "Entropy",
    "Flow",
    "Fooling",
    "Gambler",
    "GaussianSimplex",
    "Generated",
    "Hinge",
    "Hint",
    "LearnedLabels",
    "LocalClustering",
    "Mimicry",
    "Of",
    "SimilarityPreserving",
    "SinkhornDivergence",
    "SoftBet",
    "SoftTargets",
    "SoftmaxMSE",
    "Taught",
    "Term",
    "Triplets",
    "View",
    "Weighted",
    "angle_relations",
    "attention_map",
    "attention_transfer",
    "check_payoff",
    "collapsed",
    "cross_entropy",
    "distance_relations",
    "divergence",
    "draw_triplets",
    "entropy",
    "flow_loss",
    "flow_matrix",
    "gambler",
    "gaussian_simplex",
    "hinge",
    "hint_loss",
    "label_smooth_replacement",
    "labels_and_soft_targets",
    "local_clustering",
    "probability_shift",
    "regressor",
    "reverse_kl",
    "similarity_preserving",
    "sinkhorn_divergence",
    "soft_bet",
    "soft_targets",
    "softmax_mse",
    "triplet_loss",
]
