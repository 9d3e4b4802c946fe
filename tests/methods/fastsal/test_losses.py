"""The losses of FastSal: plain loops, minima, gradients, and teachers of another size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.methods.fastsal.density import (
    DensityTerm,
    angle,
    density_terms,
    divergence,
    scaled_cross_entropy,
    teacher_density,
)
from tutelage.methods.fastsal.hints import DECODER, LEVELS, LevelHints, level_distance
from tutelage.models.outputs import Outputs

GENERATOR = torch.Generator().manual_seed(8)
Z, V = torch.randn(2, 3, 1, 4, 5, generator=GENERATOR, dtype=torch.float64)


def rows(logits: Tensor) -> list[list[float]]:
    return [list(row) for row in logits.flatten(1).tolist()]


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("output", ["map", "log_density"])
def test_losses_equal_plain_loops(output: Any) -> None:
    terms = density_terms(output)
    values = {name: weighted.term(Outputs(Z), Outputs(V), None) for name, weighted in terms.items()}  # type: ignore[union-attr]
    for image, (z, v) in enumerate(zip(rows(Z), rows(V), strict=True)):
        raw = [logistic(value) if output == "map" else math.exp(value) for value in v]
        g = [value / sum(raw) for value in raw]
        p = softmax(z)
        kl = sum(b * math.log(b / a) for a, b in zip(p, g, strict=True))
        bce = 0.0
        for logit, value in zip(z, g, strict=True):
            target = (value - min(g)) / (max(g) - min(g))
            bce -= target * math.log(logistic(logit)) + (1 - target) * math.log(1 - logistic(logit))
        dot = sum(a * b for a, b in zip(p, g, strict=True))
        cosine = dot / math.sqrt(sum(a * a for a in p) * sum(b * b for b in g))
        expected = {"kl": kl, "bce": bce / 20, "angle": 1 - cosine}
        assert {name: float(value[image]) for name, value in values.items()} == pytest.approx(expected, rel=1e-9)
    assert {name: weighted.weight for name, weighted in terms.items()} == {"kl": 0.5, "bce": 0.3, "angle": 0.2}  # type: ignore[union-attr]


def test_divergence_and_angle_are_zero_where_the_densities_agree() -> None:
    g = teacher_density(V, (4, 5), "log_density")
    z = V.flatten(1) + 3.0  # the softmax ignores a constant
    assert float(divergence(z, g).abs().max()) < 1e-12
    assert float(angle(z, g).abs().max()) < 1e-12
    target = (g - g.amin(1, keepdim=True)) / (g.amax(1, keepdim=True) - g.amin(1, keepdim=True))
    inner = target.clamp(1e-9, 1 - 1e-9).logit()
    assert bool((scaled_cross_entropy(inner, g) < scaled_cross_entropy(inner + 0.1, g)).all())
    assert bool((scaled_cross_entropy(inner, g) < scaled_cross_entropy(inner - 0.1, g)).all())


def test_cosine_is_not_centred() -> None:
    """Two densities that correlate negatively still have a positive cosine."""
    z = torch.tensor([[0.2, 0.1, 0.0, 0.1]]).double()
    g = torch.tensor([[0.2, 0.25, 0.3, 0.25]]).double()
    assert 0 < float(angle(z, g)) < 0.1


def test_divergence_is_summed_over_pixels_and_not_averaged() -> None:
    """The same maps with each pixel repeated four times have the same divergence, and the same mean cross-entropy."""
    fine_z, fine_v = (x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (Z, V))
    coarse, fine = teacher_density(V, (4, 5), "map"), teacher_density(fine_v, (8, 10), "map")
    torch.testing.assert_close(divergence(Z.flatten(1), coarse), divergence(fine_z.flatten(1), fine))
    torch.testing.assert_close(
        scaled_cross_entropy(Z.flatten(1), coarse), scaled_cross_entropy(fine_z.flatten(1), fine)
    )


def test_constant_and_peaked_teachers_give_finite_losses() -> None:
    v = torch.zeros(2, 1, 4, 5)
    v[1, 0, 0, 0] = 300.0
    z = torch.randn(2, 1, 4, 5, generator=GENERATOR).requires_grad_()
    for output in ("map", "log_density"):
        for weighted in density_terms(output).values():  # type: ignore[arg-type]
            value = weighted.term(Outputs(z), Outputs(v), None)  # type: ignore[union-attr]
            value.sum().backward()
            assert bool(value.isfinite().all())
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_teachers_density_of_another_size_is_scaled_after_the_exponential() -> None:
    v = torch.full((1, 1, 6, 6), -50.0)
    v[0, 0, 2:4, 2:4] = 0.0
    density = teacher_density(v, (12, 12), "log_density").view(12, 12)
    assert float(density.sum()) == pytest.approx(1)
    assert float(density.min()) == 0  # the filter overshoots below 0 there
    assert float(density[5:7, 5:7].min()) > float(density[3, 3]) > 0
    torch.testing.assert_close(density, density.flip(0).flip(1))


def test_gradients_reach_the_student_alone() -> None:
    z, v = Z.clone().requires_grad_(), V.clone().requires_grad_()
    for weighted in density_terms("map").values():
        weighted.term(Outputs(z), Outputs(v), None).sum().backward()  # type: ignore[union-attr]
    assert z.grad is not None
    assert v.grad is None
    g = teacher_density(V, (4, 5), "map")
    for loss in (divergence, scaled_cross_entropy, angle):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, g), Z.flatten(1).clone().requires_grad_())


def test_other_images_are_refused(refused: Any) -> None:
    with refused("of different samples"):
        DensityTerm(divergence, "map")(Outputs(Z), Outputs(V[:1]), None)


# --- hints


def levels(generator: torch.Generator) -> tuple[Outputs, Outputs]:
    sizes = [(4, 6), (2, 3), (2, 2), (1, 1)]
    student = {name: torch.randn(3, 2 + n, *sizes[n], generator=generator) for n, name in enumerate(LEVELS)}
    teacher = {name: torch.randn(3, 5 - n, *sizes[n], generator=generator).relu() for n, name in enumerate(DECODER)}
    return Outputs(None, student), Outputs(None, teacher)


def test_hints_are_the_sum_of_the_levels_mean_squared_errors() -> None:
    student, teacher = levels(GENERATOR)
    term = LevelHints()
    term.build(student, teacher)
    value = term(student, teacher, None)
    assert term.adapters is not None
    for image in range(3):
        expected = 0.0
        for adapter, level, block in zip(term.adapters, LEVELS, DECODER, strict=True):
            convolution = adapter[0]  # type: ignore[index]
            features, hint = student[level][image], teacher[block][image]
            squares = []
            for channel in range(hint.shape[0]):
                weight, bias = convolution.weight[channel, :, 0, 0].tolist(), float(convolution.bias[channel].detach())
                for row in range(hint.shape[1]):
                    for column in range(hint.shape[2]):
                        inputs = features[:, row, column].tolist()
                        out = max(0.0, bias + sum(w * x for w, x in zip(weight, inputs, strict=True)))
                        squares.append((out - float(hint[channel, row, column])) ** 2)
            expected += sum(squares) / len(squares)
        assert float(value[image].detach()) == pytest.approx(expected, rel=1e-4)


def test_hints_reach_student_and_adapters_but_never_the_teacher() -> None:
    student, teacher = levels(GENERATOR)
    for value in (*student.features.values(), *teacher.features.values()):
        value.requires_grad_()
    term = LevelHints()
    term.build(student, teacher)
    term(student, teacher, None).sum().backward()
    assert all(value.grad is not None for value in student.features.values())
    assert all(value.grad is None for value in teacher.features.values())
    assert all(parameter.grad is not None for parameter in term.parameters())
    assert not term.reads_labels
    assert float(level_distance(teacher["decoder1"], teacher["decoder1"]).abs().max().detach()) == 0


def test_maps_that_are_halved_otherwise_are_refused(refused: Any) -> None:
    student, teacher = levels(GENERATOR)
    larger = {**teacher.features, "decoder2": torch.zeros(3, 4, 3, 3)}
    with refused("level2 (3, 2, 3)", "decoder2 (4, 3, 3)", "hint_share=0"):
        LevelHints().build(student, Outputs(None, larger))
    with refused("(3, 5, 4, 6)", "(3, 4, 3, 3)"):
        level_distance(teacher["decoder1"], larger["decoder2"])
