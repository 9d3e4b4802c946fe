"""What a student matches: one small file per idea, plain tensors in, per-sample values out."""

from tutelage.terms.attention import AttentionTransfer, attention_map, attention_transfer
from tutelage.terms.cross_entropy import CrossEntropy, cross_entropy
from tutelage.terms.hint import Hint, hint_loss, regressor
from tutelage.terms.mimicry import Mimicry
from tutelage.terms.soft_targets import SoftTargets, divergence, soft_targets
from tutelage.terms.term import Term, Weighted

__all__ = [
    "AttentionTransfer",
    "CrossEntropy",
    "Hint",
    "Mimicry",
    "SoftTargets",
    "Term",
    "Weighted",
    "attention_map",
    "attention_transfer",
    "cross_entropy",
    "divergence",
    "hint_loss",
    "regressor",
    "soft_targets",
]
