"""Saliency maps: metrics, and their values for each image of a split."""

from tutelage.evaluation.saliency.metrics import (
    auc_borji,
    auc_judd,
    auc_shuffled,
    cc,
    centre_prior,
    kl,
    nss,
    sim,
)
from tutelage.evaluation.saliency.scores import METRICS, centre_scores, map_scores, predict_maps

__all__ = [
    "METRICS",
    "auc_borji",
    "auc_judd",
    "auc_shuffled",
    "cc",
    "centre_prior",
    "centre_scores",
    "kl",
    "map_scores",
    "nss",
    "predict_maps",
    "sim",
]
