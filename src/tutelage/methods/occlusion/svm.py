"""A linear support vector machine as the last layer of a network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.evaluation.metrics import accuracy

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


def fit_svm(features: Tensor, labels: Tensor, classes: int, c: float = 1.0) -> tuple[Tensor, Tensor]:
    """One against the rest, by squared hinge loss: for each class, min ||w||^2 / 2 + C sum [1 - s (w x + b)]_+^2.

    s is 1 for samples of the class and -1 for others. The penalty is on b too, as liblinear has it. The result does not
    depend on a seed.

    Args:
        features: (N, D).
        labels: (N,) int64 in [0, classes), of at least two classes.
        classes: how many there are; one without a sample gets the outputs of a class that nothing belongs to, w = 0 and
            b = -1.
        c: C.

    Returns:
        (classes, D) and (classes,) float32: W and b, whose largest output W x + b is the prediction.
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10_000)
    model.fit(features.double().cpu().numpy(), labels.cpu().numpy())
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(weight) == 1:  # of two classes: one plane, positive on the side of the second
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    places = torch.from_numpy(np.asarray(model.classes_, dtype=np.int64))
    all_weights, all_biases = torch.zeros(classes, weight.shape[1]), torch.full((classes,), -1.0)
    all_weights[places], all_biases[places] = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return all_weights, all_biases


def choose_svm(
    features: Tensor,
    labels: Tensor,
    classes: int,
    held_out: tuple[Tensor, Tensor] | None = None,
    c: float | None = None,
) -> tuple[Tensor, Tensor, float]:
    """As ``fit_svm``, with C chosen: W, b and C.

    Args:
        features, labels, classes: as there.
        held_out: features and labels by whose accuracy C is chosen, from ``C_GRID``, the smallest of equally good ones.
        c: C itself; without it and without ``held_out`` it is 1.
    """
    grid = (c,) if c is not None else (1.0,) if held_out is None else C_GRID
    fitted = {each: fit_svm(features, labels, classes, each) for each in grid}
    scores = dict.fromkeys(grid, 0.0)
    if held_out is not None:
        apart, expected = held_out
        scores = {each: float(accuracy(apart @ w.T + b, expected)) for each, (w, b) in fitted.items()}
    chosen = max(grid, key=lambda each: (scores[each], -each))
    return *fitted[chosen], chosen


def fit_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor a > 0, from 0.01 to 100, for which softmax(a z) has the lowest negative log-likelihood.

    Distances from an SVM's planes are of the order of 1 and would be nearly uniform probabilities; the predictions stay
    as they are.

    Args:
        logits: z, (N, C).
        labels: (N,) int64, of samples that z was not fitted to.
    """
    from scipy.optimize import minimize_scalar

    values = logits.double()
    found = minimize_scalar(
        lambda exponent: float(F.cross_entropy(10**exponent * values, labels)), bounds=(-2.0, 2.0), method="bounded"
    )
    return float(10**found.x)
