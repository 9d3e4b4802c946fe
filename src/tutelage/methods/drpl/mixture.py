"""The mixture of two Beta distributions that tells noisy labels from clean ones by their losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERCENTILES = (0.05, 0.95)
EDGE = 1e-3
"""Normalised losses are clipped to [EDGE, 1 - EDGE]."""

ITERATIONS = 10
POINTS = 100
"""Points at which the posterior is tabulated."""

_SMALLEST = 1e-12


@dataclass(frozen=True)
class BetaMixture:
    """sum_k w_k Beta(alpha_k, beta_k) with two components, the second one for larger values.

    Attributes:
        alpha, beta, weight: (2,) float64.
    """

    alpha: Tensor
    beta: Tensor
    weight: Tensor

    @classmethod
    def fit(cls, values: Tensor, iterations: int = ITERATIONS) -> BetaMixture:
        """Fit by expectation maximisation with weighted moments, from Beta(1, 2) and Beta(2, 1) of equal weight.

        With the mean m and the variance s^2 of the values under the posterior of a component,

            alpha = m (m (1 - m) / s^2 - 1),   beta = alpha (1 - m) / m

        Args:
            values: (N,) in (0, 1).
            iterations: how often posterior and parameters are computed.
        """
        values = values.double()
        mixture = cls(*(torch.tensor(pair, dtype=torch.float64) for pair in ((1.0, 2.0), (2.0, 1.0), (0.5, 0.5))))
        for _ in range(iterations):
            shares = mixture.posterior(values)
            totals = shares.sum(1).clamp_min(_SMALLEST)
            mean = (shares @ values / totals).clamp(EDGE, 1 - EDGE)
            variance = (shares * (values - mean[:, None]).square()).sum(1) / totals
            alpha = mean * (mean * (1 - mean) / variance.clamp_min(_SMALLEST) - 1)
            alpha = alpha.clamp_min(EDGE)
            mixture = cls(alpha, alpha * (1 - mean) / mean, totals / totals.sum())
        return mixture

    def posterior(self, values: Tensor) -> Tensor:
        """The probability of each component, (2, N) float64, given values (N,) in (0, 1)."""
        alpha, beta = self.alpha[:, None], self.beta[:, None]
        log_density = (
            (alpha - 1) * values.log()
            + (beta - 1) * (-values).log1p()
            + (alpha + beta).lgamma()
            - alpha.lgamma()
            - beta.lgamma()
        )
        return (log_density + self.weight.clamp_min(_SMALLEST).log()[:, None]).softmax(0)

    @property
    def mean(self) -> Tensor:
        """The components' means, (2,)."""
        return self.alpha / (self.alpha + self.beta)

    def table(self) -> Tensor:
        """P(second component | value) at evenly spaced values from EDGE to 1 - EDGE, (POINTS,) float64.

        Behind its maximum it is constant: where the tail of the wide first component exceeds the second one, a larger
        loss would otherwise make a label look cleaner.
        """
        table = self.posterior(torch.linspace(EDGE, 1 - EDGE, POINTS, dtype=torch.float64))[1]
        peak = int(table.argmax())
        table[peak:] = table[peak]
        return table


def normalised(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Losses relative to their 5th and 95th percentile: 0 and 1, clipped to [EDGE, 1 - EDGE].

    Args:
        losses: (N,).

    Returns:
        (N,) float64, and which losses lie between the percentiles, (N,) bool; the mixture is fitted to these.
    """
    losses = losses.double()
    low, high = losses.quantile(torch.tensor(PERCENTILES, dtype=torch.float64))
    inner = (losses >= low) & (losses <= high)
    return ((losses - low) / (high - low).clamp_min(_SMALLEST)).clamp(EDGE, 1 - EDGE), inner


def probability_noisy(losses: Tensor) -> Tensor:
    """P(noisy | loss) by the Beta mixture of the losses, looked up in its table, (N,) float64.

    Args:
        losses: (N,), the loss of each sample on its given label.
    """
    values, inner = normalised(losses)
    table = BetaMixture.fit(values[inner]).table()
    position = (values - EDGE) / (1 - 2 * EDGE) * (POINTS - 1)
    return table[position.floor().long().clamp(0, POINTS - 1)]
