"""What a network is worth: accuracy, calibration, fidelity to its teacher, memorised noise, cost."""

from tutelage.evaluation.cost import Latency, flops, latency, parameters
from tutelage.evaluation.evaluate import cost_of, evaluate, memorisation
from tutelage.evaluation.metrics import (
    Reliability,
    accuracy,
    agreement,
    brier,
    calibration_gap,
    ece,
    kl_to_teacher,
    memorised,
    nll,
    per_class_accuracy,
    reliability,
    worst_class_accuracy,
    wrongly_labelled,
)
from tutelage.evaluation.predict import evaluating, predict

__all__ = [
    "Latency",
    "Reliability",
    "accuracy",
    "agreement",
    "brier",
    "calibration_gap",
    "cost_of",
    "ece",
    "evaluate",
    "evaluating",
    "flops",
    "kl_to_teacher",
    "latency",
    "memorisation",
    "memorised",
    "nll",
    "parameters",
    "per_class_accuracy",
    "predict",
    "reliability",
    "worst_class_accuracy",
    "wrongly_labelled",
]
