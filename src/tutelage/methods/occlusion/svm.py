"""A linear support vector machine as the classifier of a network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.evaluation.metrics import accuracy

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


def fit_svm(features: Tensor, labels: Tensor, classes: int, c: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fit one-versus-rest machines with squared hinge loss, min ||w||^2 / 2 + C sum [1 - s (w x + b)]_+^2 per class.

    s is 1 for samples of the class and -1 for others. As in liblinear, b is penalised too. The result does not depend
    on a seed.

    Args:
        features: (N, D).
        labels: (N,) int64 in [0, classes), of at least two classes.
        classes: the number of classes; one without samples gets w = 0 and b = -1.
        c: C.

    Returns:
        W (classes, D) and b (classes,) float32; the prediction is the largest entry of W x + b.
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10_000)
    model.fit(features.double().cpu().numpy(), labels.cpu().numpy())
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(weight) == 1:  # for two classes: a single plane, positive for the second class
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    rows = torch.from_numpy(np.asarray(model.classes_, dtype=np.int64))
    all_weights, all_biases = torch.zeros(classes, weight.shape[1]), torch.full((classes,), -1.0)
    all_weights[rows], all_biases[rows] = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return all_weights, all_biases


def select_svm(
    features: Tensor,
    labels: Tensor,
    classes: int,
    held_out: tuple[Tensor, Tensor] | None = None,
    c: float | None = None,
) -> tuple[Tensor, Tensor, float]:
    """``fit_svm`` with C selected: W, b and C.

    Args:
        features, labels, classes: as in ``fit_svm``.
        held_out: features and labels by whose accuracy C is selected from ``C_GRID``, the smallest of equally good
            ones.
        c: C, to select none; without it and without ``held_out``, C is 1.
    """
    grid = (c,) if c is not None else (1.0,) if held_out is None else C_GRID
    machines = {value: fit_svm(features, labels, classes, value) for value in grid}
    scores = dict.fromkeys(grid, 0.0)
    if held_out is not None:
        inputs, targets = held_out
        scores = {value: float(accuracy(inputs @ w.T + b, targets)) for value, (w, b) in machines.items()}
    best = max(grid, key=lambda value: (scores[value], -value))
    return *machines[best], best


def fit_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor a in [0.01, 100] for which softmax(a z) has the lowest negative log-likelihood.

    The outputs of a support vector machine are of the order of 1, so that their softmax would be nearly uniform. The
    factor does not change predictions.

    Args:
        logits: z, (N, C).
        labels: (N,) int64, of samples to which z was not fitted.
    """
    from scipy.optimize import minimize_scalar

    values = logits.double()
    result = minimize_scalar(
        lambda exponent: float(F.cross_entropy(10**exponent * values, labels)), bounds=(-2.0, 2.0), method="bounded"
    )
    return float(10**result.x)
