"""Terms for all samples: without the learner's sample weights, with those of their batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, View
from tutelage.training import Learner
from tutelage.training.learner import ForwardPass


def test_term_for_all_samples_has_only_the_weights_of_its_view(tiny_model: Callable[..., Tapped]) -> None:
    view, weight, sizes = View(), torch.tensor([2.0, 0.0, 0.5]), []

    def omit(forward_pass: ForwardPass, progress: float) -> Tensor:
        sizes.append(len(forward_pass.batch))
        return torch.zeros(len(forward_pass.batch))

    def of(size: int, weight: Tensor | None = None) -> ForwardPass:
        index = torch.arange(size)
        return ForwardPass(
            Batch(torch.zeros(size, 1, 2, 2), index % 4, index, None, weight), Outputs(torch.randn(size, 4)), None
        )

    terms = {
        "omitted": CrossEntropy(),
        "all": CrossEntropy().for_all_samples(),
        "view": 0.5 * CrossEntropy().on(view).for_all_samples(),
    }
    passes = {None: of(8), view: of(3, weight)}
    loss, values = Learner(tiny_model(), None, terms, sample_weight=omit).loss(passes, 0.0)
    plain, viewed = (
        F.cross_entropy(p.student["logits"], p.batch.targets, reduction="none") for p in (passes[None], passes[view])
    )
    expected = [0.0, plain.mean().item(), (weight * viewed).mean().item()]
    assert values.tolist() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected[1] + 0.5 * expected[2], rel=1e-5)
    assert sizes == [8]  # not called for the view, whose only term has no sample weight
