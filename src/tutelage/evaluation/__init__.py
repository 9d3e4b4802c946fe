"""What a network is worth: accuracy, calibration, fidelity to its teacher, memorised noise, robustness, cost."""

from tutelage.evaluation.beyond import evaluate_beyond
from tutelage.evaluation.corruptions import CORRUPTIONS, corruption_accuracies
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
from tutelage.evaluation.ood import ood_auroc
from tutelage.evaluation.predict import predict
from tutelage.evaluation.robustness import Robustness, pgd_accuracies
from tutelage.evaluation.selective import RiskCoverage, aurc, risk_coverage
from tutelage.models.modes import evaluating

__all__ = [
    "CORRUPTIONS",
    "Latency",
    "Reliability",
    "RiskCoverage",
    "Robustness",
    "accuracy",
    "agreement",
    "aurc",
    "brier",
    "calibration_gap",
    "corruption_accuracies",
    "cost_of",
    "ece",
    "evaluate",
    "evaluate_beyond",
    "evaluating",
    "flops",
    "kl_to_teacher",
    "latency",
    "memorisation",
    "memorised",
    "nll",
    "ood_auroc",
    "parameters",
    "per_class_accuracy",
    "pgd_accuracies",
    "predict",
    "reliability",
    "risk_coverage",
    "worst_class_accuracy",
    "wrongly_labelled",
]
