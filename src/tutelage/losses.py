"""Distillation losses as functions of plain tensors, for a training loop of your own.

``soft_targets`` (Hinton), ``hint_loss`` (FitNets), ``flow_loss`` (FSP), ``attention_transfer``,
``similarity_preserving``, ``distance_relations`` and ``angle_relations`` (RKD) and ``mimicry_loss`` (deep mutual
learning) compare a student with its teacher. For BSS, ``tutelage.attacks.boundary_attack`` moves samples to the
teacher's decision boundary, on which ``soft_targets`` is computed; for ONE, ``soft_targets`` takes the gated ensemble
as teacher.

Later losses on logits: ``decoupled_soft_targets`` (DKD), ``inter_class_relation`` and ``intra_class_relation`` (DIST),
``refined_soft_targets`` (RLD), ``standardized_soft_targets``, ``sample_correlations`` and ``class_correlations``
(MLKD); ``virtual_soft_targets`` (Tf-KD) needs no teacher. On embeddings: ``probabilistic_transfer`` (PKT),
``correlation_congruence`` (CC), ``in_batch_contrast`` and ``noise_contrast`` (CRD). On maps: ``neuron_selectivity``
(NST), ``gaussian_information`` (VID), ``hierarchical_context`` (ReviewKD), ``factor_distance`` (FT),
``activation_boundaries`` (AB), ``partial_distance`` (OFD). On maps of dense predictions: ``channel_divergence`` (CWD).
On saliency maps: ``map_cross_entropy`` (labels) and ``map_soft_targets`` (Hinton).

Each docstring has the equation, the shapes and the source.

Losses that are defined for single samples return a value per sample, (B,); those that compare the samples of a batch
with each other return one value, (). All compute in float32 also under autocast. No gradient reaches the teacher,
except in ``sinkhorn_divergence``, which treats both arguments alike.

``tutelage.terms`` has the same losses as modules.
"""

from tutelage.terms.attention import attention_map, attention_transfer
from tutelage.terms.boundaries import activation_boundaries
from tutelage.terms.channels import channel_divergence
from tutelage.terms.congruence import correlation_congruence
from tutelage.terms.consistency import softmax_mse
from tutelage.terms.contrastive import in_batch_contrast, noise_contrast
from tutelage.terms.correlation import inter_class_relation, intra_class_relation
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.decoupled import decoupled_soft_targets
from tutelage.terms.factor import factor_distance
from tutelage.terms.flow import flow_loss, flow_matrix
from tutelage.terms.hint import hint_loss, regressor
from tutelage.terms.knowledge_adjustment import label_smooth_replacement, probability_shift
from tutelage.terms.maps import map_cross_entropy, map_soft_targets
from tutelage.terms.mimicry import mimicry_loss
from tutelage.terms.multi_level import class_correlations, sample_correlations
from tutelage.terms.overhaul import partial_distance
from tutelage.terms.probabilistic import probabilistic_transfer
from tutelage.terms.refined import refined_soft_targets
from tutelage.terms.relations import angle_relations, distance_relations
from tutelage.terms.review import hierarchical_context
from tutelage.terms.selectivity import neuron_selectivity
from tutelage.terms.similarity import similarity_preserving
from tutelage.terms.sinkhorn import sinkhorn_divergence
from tutelage.terms.soft_targets import kl_divergence, soft_targets
from tutelage.terms.standardization import standardized_soft_targets
from tutelage.terms.triplets import draw_triplets, triplet_loss
from tutelage.terms.variational import gaussian_information
from tutelage.terms.virtual_teacher import virtual_soft_targets

__all__ = [
    "activation_boundaries",
    "angle_relations",
    "attention_map",
    "attention_transfer",
    "channel_divergence",
    "class_correlations",
    "correlation_congruence",
    "cross_entropy",
    "decoupled_soft_targets",
    "distance_relations",
    "draw_triplets",
    "factor_distance",
    "flow_loss",
    "flow_matrix",
    "gaussian_information",
    "hierarchical_context",
    "hint_loss",
    "in_batch_contrast",
    "inter_class_relation",
    "intra_class_relation",
    "kl_divergence",
    "label_smooth_replacement",
    "map_cross_entropy",
    "map_soft_targets",
    "mimicry_loss",
    "neuron_selectivity",
    "noise_contrast",
    "partial_distance",
    "probabilistic_transfer",
    "probability_shift",
    "refined_soft_targets",
    "regressor",
    "sample_correlations",
    "similarity_preserving",
    "sinkhorn_divergence",
    "soft_targets",
    "softmax_mse",
    "standardized_soft_targets",
    "triplet_loss",
    "virtual_soft_targets",
]
