"""Evaluation of networks: accuracy, calibration, agreement with the teacher, memorised labels, robustness, cost."""

from tutelage.evaluation.attacked import AttackReport, AttackResult, evaluate_attacks
from tutelage.evaluation.calibration import calibrated_metrics, conformal_threshold, fit_calibration, fit_temperature
from tutelage.evaluation.corruptions import CORRUPTIONS, corruption_accuracies
from tutelage.evaluation.cost import Latency, cost_of, flops, latency, parameters
from tutelage.evaluation.extra import evaluate_extra
from tutelage.evaluation.generative import (
    coverage,
    evaluate_generator,
    frechet_distance,
    frechet_distance_of,
    inception_score,
)
from tutelage.evaluation.memorisation import memorisation
from tutelage.evaluation.metrics import (
    Reliability,
    accuracy,
    agreement,
    brier,
    calibration_gap,
    confusion,
    ece,
    kl_to_teacher,
    macro_auroc,
    macro_f1,
    memorised,
    nll,
    per_class_accuracy,
    per_class_f1,
    per_class_precision,
    reliability,
    top_accuracy,
    worst_class_accuracy,
    wrongly_labelled,
)
from tutelage.evaluation.ood import ood_auroc
from tutelage.evaluation.operations.abstain import abstain_probability, selection_score
from tutelage.evaluation.ordinal import expected_grade, grade_error, quadratic_kappa
from tutelage.evaluation.perturbations import perturbation_measures, rank_networks
from tutelage.evaluation.predict import predict, predict_roles
from tutelage.evaluation.robustness import Robustness, auac, pgd_accuracies
from tutelage.evaluation.selective import RiskCoverage, aurc, risk_coverage
from tutelage.models.modes import eval_mode

__all__ = [
    "CORRUPTIONS",
    "AttackReport",
    "AttackResult",
    "Latency",
    "Reliability",
    "RiskCoverage",
    "Robustness",
    "abstain_probability",
    "accuracy",
    "agreement",
    "auac",
    "aurc",
    "brier",
    "calibrated_metrics",
    "calibration_gap",
    "conformal_threshold",
    "confusion",
    "corruption_accuracies",
    "cost_of",
    "coverage",
    "ece",
    "eval_mode",
    "evaluate_attacks",
    "evaluate_extra",
    "evaluate_generator",
    "expected_grade",
    "fit_calibration",
    "fit_temperature",
    "flops",
    "frechet_distance",
    "frechet_distance_of",
    "grade_error",
    "inception_score",
    "kl_to_teacher",
    "latency",
    "macro_auroc",
    "macro_f1",
    "memorisation",
    "memorised",
    "nll",
    "ood_auroc",
    "parameters",
    "per_class_accuracy",
    "per_class_f1",
    "per_class_precision",
    "perturbation_measures",
    "pgd_accuracies",
    "predict",
    "predict_roles",
    "quadratic_kappa",
    "rank_networks",
    "reliability",
    "risk_coverage",
    "selection_score",
    "top_accuracy",
    "worst_class_accuracy",
    "wrongly_labelled",
]
