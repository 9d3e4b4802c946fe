"""The normalised terms are independent of sizes and scales, as docs/methods/weights.md says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.models.outputs import Outputs
from tutelage.terms import AttentionTransfer, Flow, Hint, SimilarityPreserving, SoftTargets


def maps(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def outputs(*features: Tensor) -> Outputs:
    return Outputs(None, {f"stage{number}": value for number, value in enumerate(features, 1)})


@pytest.mark.parametrize("times", [2, 4, 8])
def test_attention_term_is_independent_of_map_size(times: int) -> None:
    student, teacher = maps(5, 3, 8, 8), maps(5, 4, 8, 8)
    term = AttentionTransfer((("stage1", "stage1"),))
    larger = [F.interpolate(m, scale_factor=times) for m in (student, teacher)]
    torch.testing.assert_close(
        term(outputs(larger[0]), outputs(larger[1]), None), term(outputs(student), outputs(teacher), None)
    )


def test_attention_term_equals_authors_code_at_32_pixels() -> None:
    student, teacher = maps(5, 3, 32, 32), maps(5, 4, 32, 32)
    q = [F.normalize(m.square().mean(1).flatten(1)) for m in (student, teacher)]
    expected = (q[0] - q[1]).square().mean()
    value = AttentionTransfer((("stage1", "stage1"),))(outputs(student), outputs(teacher), None).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("times", [2, 8])
def test_similarity_term_is_independent_of_batch_size(times: int) -> None:
    student, teacher = maps(8, 3, 2, 2), maps(8, 5, 3, 3)
    term = SimilarityPreserving("stage1", "stage1")
    repeated_maps = [m.repeat(times, 1, 1, 1) for m in (student, teacher)]
    torch.testing.assert_close(
        term(outputs(repeated_maps[0]), outputs(repeated_maps[1]), None), term(outputs(student), outputs(teacher), None)
    )


def test_similarity_term_equals_paper_at_64_samples() -> None:
    student, teacher = maps(64, 3, 2, 2).flatten(1), maps(64, 5, 2, 2).flatten(1)
    g = [F.normalize(q @ q.T) for q in (student, teacher)]
    value = SimilarityPreserving("stage1", "stage1")(outputs(student), outputs(teacher), None)
    torch.testing.assert_close(value, (g[1] - g[0]).square().sum() / 64**2)


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_relative_hints_and_flows_are_scale_invariant(scale: float) -> None:
    student, teacher = (maps(6, 4, 4, 4), maps(6, 5, 4, 4)), (maps(6, 4, 4, 4), maps(6, 5, 4, 4))
    hint = Hint("stage1", "stage1", "relative")
    flow = Flow((("stage1", "stage1"), ("stage2", "stage2")))
    for term in (hint, flow):
        term.build(outputs(*student), outputs(*teacher))
        torch.testing.assert_close(
            term(outputs(*(scale * m for m in student)), outputs(*(scale * m for m in teacher)), None),
            term(outputs(*student), outputs(*teacher), None),
        )


def test_relative_hints_and_flows_are_1_for_zero_prediction() -> None:
    student, teacher = [torch.zeros(6, 4, 4, 4, dtype=torch.float64)] * 2, (maps(6, 4, 4, 4), maps(6, 4, 4, 4))
    for term in (Hint("stage1", "stage1", "relative"), Flow((("stage1", "stage1"), ("stage2", "stage2")))):
        term.build(outputs(*student), outputs(*teacher))
        value = term(outputs(*student), outputs(*teacher), None)
        torch.testing.assert_close(value.mean(), torch.ones((), dtype=torch.float64))


def test_gradient_of_soft_targets_is_comparable_across_temperatures() -> None:
    z, v = maps(4, 10), maps(4, 10)
    sizes = []
    for temperature in (4.0, 8.0, 16.0):
        logits = z.clone().requires_grad_()
        SoftTargets(temperature)(Outputs(logits), Outputs(v), None).mean().backward()
        assert logits.grad is not None
        sizes.append(float(logits.grad.norm()))
    assert max(sizes) < 1.1 * min(sizes)
