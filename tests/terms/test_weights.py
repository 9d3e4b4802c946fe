"""One weight for every size: what docs/methods/weights.md says of the normalised terms."""

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
def test_attention_does_not_depend_on_the_size_of_the_maps(times: int) -> None:
    student, teacher = maps(5, 3, 8, 8), maps(5, 4, 8, 8)
    term = AttentionTransfer((("stage1", "stage1"),))
    larger = [F.interpolate(m, scale_factor=times) for m in (student, teacher)]
    torch.testing.assert_close(
        term(outputs(larger[0]), outputs(larger[1]), None), term(outputs(student), outputs(teacher), None)
    )


def test_at_32_pixels_attention_is_the_authors_code() -> None:
    student, teacher = maps(5, 3, 32, 32), maps(5, 4, 32, 32)
    q = [F.normalize(m.square().mean(1).flatten(1)) for m in (student, teacher)]
    expected = (q[0] - q[1]).square().mean()
    value = AttentionTransfer((("stage1", "stage1"),))(outputs(student), outputs(teacher), None).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("times", [2, 8])
def test_similarities_do_not_depend_on_the_size_of_the_batch(times: int) -> None:
    student, teacher = maps(8, 3, 2, 2), maps(8, 5, 3, 3)
    term = SimilarityPreserving("stage1", "stage1")
    repeated = [m.repeat(times, 1, 1, 1) for m in (student, teacher)]
    torch.testing.assert_close(
        term(outputs(repeated[0]), outputs(repeated[1]), None), term(outputs(student), outputs(teacher), None)
    )


def test_at_64_samples_similarities_are_the_papers() -> None:
    student, teacher = maps(64, 3, 2, 2).flatten(1), maps(64, 5, 2, 2).flatten(1)
    g = [F.normalize(q @ q.T) for q in (student, teacher)]
    value = SimilarityPreserving("stage1", "stage1")(outputs(student), outputs(teacher), None)
    torch.testing.assert_close(value, (g[1] - g[0]).square().sum() / 64**2)


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_relative_hints_and_flows_do_not_depend_on_the_scale_of_activations(scale: float) -> None:
    ours, theirs = (maps(6, 4, 4, 4), maps(6, 5, 4, 4)), (maps(6, 4, 4, 4), maps(6, 5, 4, 4))
    hint = Hint("stage1", "stage1", "relative")
    flow = Flow((("stage1", "stage1"), ("stage2", "stage2")))
    for term in (hint, flow):
        term.build(outputs(*ours), outputs(*theirs))
        torch.testing.assert_close(
            term(outputs(*(scale * m for m in ours)), outputs(*(scale * m for m in theirs)), None),
            term(outputs(*ours), outputs(*theirs), None),
        )


def test_relative_hints_and_flows_are_1_where_nothing_is_predicted() -> None:
    ours, theirs = [torch.zeros(6, 4, 4, 4, dtype=torch.float64)] * 2, (maps(6, 4, 4, 4), maps(6, 4, 4, 4))
    for term in (Hint("stage1", "stage1", "relative"), Flow((("stage1", "stage1"), ("stage2", "stage2")))):
        term.build(outputs(*ours), outputs(*theirs))
        value = term(outputs(*ours), outputs(*theirs), None)
        torch.testing.assert_close(value.mean(), torch.ones((), dtype=torch.float64))


def test_soft_targets_keep_the_size_of_their_gradient_when_the_temperature_changes() -> None:
    z, v = maps(4, 10), maps(4, 10)
    sizes = []
    for temperature in (4.0, 8.0, 16.0):
        logits = z.clone().requires_grad_()
        SoftTargets(temperature)(Outputs(logits), Outputs(v), None).mean().backward()
        assert logits.grad is not None
        sizes.append(float(logits.grad.norm()))
    assert max(sizes) < 1.1 * min(sizes)
