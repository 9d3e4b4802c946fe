"""Measures of adversarial perturbations that do not depend on the size of the inputs, and rankings of networks by them.

Cancela, Bolon-Canedo, Alonso-Betanzos, ICPR 2020 (attack ``den``), from the authors' code (braisCB/adversarial_attack).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MEASURES = ("l2", "l1", "l0", "linf", "amsd_2", "amsd_1", "amsd_0", "amud")

_RANKED = ("linf", "amsd_0", "amsd_1", "amsd_2")  # a larger value is more robust; a larger amud is less
_CLIP = 1e-8


def perturbation_measures(inputs: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """Measure each perturbation delta = adversarial - inputs: by name, (B,).

        l2, l1, l0 (values that change), linf;  amsd_2 = l2 / sqrt(d),  amsd_1 = l1 / d,  amsd_0 = l0 / d
        amud = -sum_i q_i log q_i / log d,   q = c / sum c,   c = delta^2 clipped to [1e-8, 1 - 1e-8]

    d is the number of values of an input. ``amud`` is 1 for a perturbation that changes all values alike and nearly 0
    for one that changes a single value; because of the clip it also approaches 1 for changes below 1e-4. The acronyms
    are not spelled out in the code; "adversarial mean square distance" and "uniformity" are guesses [inferred].

    Args:
        inputs, adversarial: (B, ...), in [0, 1] for every network, so that the values of two networks compare.
    """
    delta = (adversarial - inputs).flatten(1).double()
    size = delta.shape[1]
    l2, l1, linf = (torch.linalg.vector_norm(delta, order, dim=1) for order in (2.0, 1.0, float("inf")))
    l0 = (delta != 0).sum(1).double()
    share = delta.square().clamp(_CLIP, 1 - _CLIP)
    share = share / share.sum(1, keepdim=True)
    amud = -(share * share.log()).sum(1) / math.log(max(size, 2))
    amsd = {"amsd_2": l2 / math.sqrt(size), "amsd_1": l1 / size, "amsd_0": l0 / size}
    return {"l2": l2, "l1": l1, "l0": l0, "linf": linf, **amsd, "amud": amud}


def rank_networks(measures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Rank networks by robustness: by name, the sum of their ranks, the most robust first.

    A network has a rank in each of linf, amsd_0, amsd_1 and amsd_2 (1 for the largest) and amud (1 for the smallest);
    equal values share the mean of their ranks. None of them depends on the preprocessing or the size of the inputs.

    Args:
        measures: by network, the mean of each of ``perturbation_measures`` over the same samples.
    """
    totals = dict.fromkeys(measures, 0.0)
    for measure, sign in (*((name, -1.0) for name in _RANKED), ("amud", 1.0)):
        values = {network: sign * table[measure] for network, table in measures.items()}
        for network, value in values.items():
            smaller = sum(other < value for other in values.values())
            equal = sum(other == value for other in values.values())
            totals[network] += smaller + (equal + 1) / 2
    return dict(sorted(totals.items(), key=lambda entry: entry[1]))
