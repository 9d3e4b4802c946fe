"""Distillation losses as functions of plain tensors, for a training loop of your own.

``soft_targets`` (Hinton), ``hint_loss`` (FitNets), ``flow_loss`` (FSP), ``attention_transfer``,
``similarity_preserving``, ``distance_relations`` and ``angle_relations`` (RKD) and ``mimicry_loss`` (deep mutual
learning) compare a student with its teacher. For BSS, ``tutelage.attacks.boundary_attack`` moves samples to the
teacher's decision boundary, on which ``soft_targets`` is computed; for ONE, ``soft_targets`` takes the gated ensemble
as teacher. Each docstring has the equation, the shapes and the source.

Losses that are defined for single samples return a value per sample, (B,); those that compare the samples of a batch
with each other return one value, (). All compute in float32 also under autocast. No gradient reaches the teacher,
except in ``sinkhorn_divergence``, which treats both arguments alike.

``tutelage.terms`` has the same losses as modules.
"""

from tutelage.terms.attention import attention_map, attention_transfer
from tutelage.terms.consistency import softmax_mse
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.flow import flow_loss, flow_matrix
from tutelage.terms.hint import hint_loss, regressor
from tutelage.terms.knowledge_adjustment import label_smooth_replacement, probability_shift
from tutelage.terms.mimicry import mimicry_loss
from tutelage.terms.relations import angle_relations, distance_relations
from tutelage.terms.similarity import similarity_preserving
from tutelage.terms.sinkhorn import sinkhorn_divergence
from tutelage.terms.soft_targets import kl_divergence, soft_targets
from tutelage.terms.triplets import draw_triplets, triplet_loss

__all__ = [
    "angle_relations",
    "attention_map",
    "attention_transfer",
    "cross_entropy",
    "distance_relations",
    "draw_triplets",
    "flow_loss",
    "flow_matrix",
    "hint_loss",
    "kl_divergence",
    "label_smooth_replacement",
    "mimicry_loss",
    "probability_shift",
    "regressor",
    "similarity_preserving",
    "sinkhorn_divergence",
    "soft_targets",
    "softmax_mse",
    "triplet_loss",
]
