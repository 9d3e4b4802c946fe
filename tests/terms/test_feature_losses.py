"""PKT, CC, NST, VID, CRD, ReviewKD, AB, OFD and FT: closed forms, plain loops in float64, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage import losses, terms
from tutelage.models.outputs import Outputs
from tutelage.terms.congruence import gaussian_correlations
from tutelage.terms.probabilistic import conditional_similarities


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


VECTORS, OTHERS = features(5, 4), features(5, 7, seed=1)
MAPS, TARGETS = features(3, 2, 4, 4), features(3, 2, 4, 4, seed=1)
VARIANCE = torch.tensor([0.5, 2.0], dtype=torch.float64)
Loss = Callable[[Tensor, Tensor], Tensor]
ON_VECTORS: dict[str, Loss] = {
    "probabilistic_transfer": losses.probabilistic_transfer,
    "correlation_congruence": losses.correlation_congruence,
}
ON_MAPS: dict[str, Loss] = {
    "neuron_selectivity": losses.neuron_selectivity,
    "hierarchical_context": losses.hierarchical_context,
    "factor_distance": losses.factor_distance,
    "gaussian_information": lambda s, t: losses.gaussian_information(s, t, VARIANCE),
    "activation_boundaries": losses.activation_boundaries,
    "partial_distance": lambda s, t: losses.partial_distance(s, t, MARGIN),
}
MARGIN = torch.tensor([-0.5, -0.1], dtype=torch.float64)
NOT_ZERO = {"gaussian_information", "activation_boundaries"}


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [*ON_VECTORS, *ON_MAPS])
def test_loss_is_zero_where_student_equals_teacher(name: str) -> None:
    loss, value = {**ON_VECTORS, **ON_MAPS}[name], VECTORS if name in ON_VECTORS else MAPS
    if name not in NOT_ZERO:
        assert loss(value, value).abs().max() < 1e-12
        assert (loss(value, OTHERS if name in ON_VECTORS else TARGETS) > 1e-6).all()


@pytest.mark.parametrize("name", [*ON_VECTORS, *ON_MAPS])
def test_gradcheck_and_no_gradient_of_teacher(name: str) -> None:
    loss = {**ON_VECTORS, **ON_MAPS}[name]
    student, teacher = (VECTORS, OTHERS) if name in ON_VECTORS else (MAPS, TARGETS)
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher.detach()), student)
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", [*ON_VECTORS, "neuron_selectivity", "factor_distance"])
def test_features_of_zeros_are_finite_in_value_and_gradient(name: str) -> None:
    loss = {**ON_VECTORS, **ON_MAPS}[name]
    student, teacher = (VECTORS, OTHERS) if name in ON_VECTORS else (MAPS, TARGETS)
    student = torch.zeros_like(student).requires_grad_()
    value = loss(student, teacher)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# --- PKT


def test_probabilistic_transfer_by_loops() -> None:
    def conditional(rows: list[list[float]]) -> list[list[float]]:
        rows = [unit(row) for row in rows]
        kernel = [[(1 + dot(a, b)) / 2 for b in rows] for a in rows]
        return [[value / sum(row) for value in row] for row in kernel]

    p, q = conditional(VECTORS.tolist()), conditional(OTHERS.tolist())
    total = sum(q[i][j] * math.log((q[i][j] + 1e-7) / (p[i][j] + 1e-7)) for i in range(5) for j in range(5))
    assert losses.probabilistic_transfer(VECTORS, OTHERS).item() == pytest.approx(total / 25, rel=1e-10)
    value = terms.ProbabilisticTransfer()(
        Outputs(None, {"embedding": VECTORS}), Outputs(None, {"embedding": OTHERS}), None
    )
    assert value.item() == pytest.approx(total / 5, rel=1e-10)


def test_conditional_similarities_of_orthogonal_vectors() -> None:
    """A cosine of 1 with itself and of 0 with the other: 1 and 1/2, divided by their sum."""
    expected = torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]])
    torch.testing.assert_close(conditional_similarities(torch.eye(2)), expected)


# --- CC


def test_correlation_congruence_by_loops() -> None:
    def kernel(rows: list[list[float]]) -> list[list[float]]:
        rows = [unit(row) for row in rows]
        series = [1.0, 0.8, 0.32]  # (2 gamma)^p / p!
        return [[math.exp(-0.8) * sum(c * dot(a, b) ** p for p, c in enumerate(series)) for b in rows] for a in rows]

    s, t = kernel(VECTORS.tolist()), kernel(OTHERS.tolist())
    expected = sum((s[i][j] - t[i][j]) ** 2 for i in range(5) for j in range(5)) / 25
    assert losses.correlation_congruence(VECTORS, OTHERS).item() == pytest.approx(expected, rel=1e-12)


def test_series_of_high_order_is_gaussian_kernel() -> None:
    directions = F.normalize(VECTORS)
    expected = (-0.4 * torch.cdist(directions, directions).square()).exp()
    torch.testing.assert_close(gaussian_correlations(VECTORS, 0.4, 12), expected)


# --- NST


def test_neuron_selectivity_by_loops() -> None:
    student, teacher = features(2, 3, 2, 2), features(2, 4, 2, 2, seed=1)

    def mean_kernel(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(dot(unit(x), unit(y)) ** 2 for x in a for y in b) / (len(a) * len(b))

    expected = [
        mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
        for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True)
    ]
    value = losses.neuron_selectivity(student, teacher)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_selectivity_ignores_order_scale_and_repetition_of_channels() -> None:
    changed = torch.cat([5 * MAPS[:, [1]], MAPS[:, [0]]], 1)
    assert losses.neuron_selectivity(changed.repeat(1, 2, 1, 1), MAPS).abs().max() < 1e-12


def test_selectivity_pools_the_larger_map() -> None:
    small = features(3, 2, 2, 2)
    large = F.interpolate(small, scale_factor=2)
    assert losses.neuron_selectivity(large, small).abs().max() < 1e-12
    assert losses.neuron_selectivity(small, large).abs().max() < 1e-12


# --- VID


def test_gaussian_information_is_negative_log_density() -> None:
    deviations = VARIANCE.sqrt().view(1, 2, 1, 1)
    density = torch.distributions.Normal(MAPS, deviations.expand_as(MAPS)).log_prob(TARGETS)
    expected = -density.flatten(1).mean(1) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(losses.gaussian_information(MAPS, TARGETS, VARIANCE), expected)


def test_variance_of_least_loss_is_mean_squared_error() -> None:
    variance = VARIANCE.clone().requires_grad_()
    errors = (MAPS - TARGETS).square().mean((0, 2, 3))
    losses.gaussian_information(MAPS, TARGETS, errors.requires_grad_()).mean().backward()
    assert errors.grad is not None
    assert errors.grad.abs().max() < 1e-12
    losses.gaussian_information(MAPS, TARGETS, variance).mean().backward()
    assert variance.grad is not None
    assert variance.grad.abs().min() > 1e-3


def test_variational_term_starts_at_its_variance_and_trains_it() -> None:
    term = terms.VariationalInformation((("s", "t"),), variance=5.0)
    pair = Outputs(None, {"s": features(3, 4, 8, 8)}), Outputs(None, {"t": TARGETS})
    term.build(*pair)
    assert term.predictions is not None
    torch.testing.assert_close(term.predictions[0](pair[0]["s"])[1], torch.full((2,), 5.0, dtype=torch.float64))
    value = term(*pair, None)
    assert value.shape == (3,)
    value.mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())


# --- CRD


def test_in_batch_contrast_by_loops() -> None:
    s, t = F.normalize(VECTORS), F.normalize(features(5, 4, seed=2))
    rows, columns = s.tolist(), t.tolist()
    expected = []
    for i in range(5):
        across = [math.exp(dot(rows[i], column) / 0.1) for column in columns]
        down = [math.exp(dot(row, columns[i]) / 0.1) for row in rows]
        expected.append(-0.5 * (math.log(across[i] / sum(across)) + math.log(down[i] / sum(down))))
    torch.testing.assert_close(losses.in_batch_contrast(s, t, 0.1), torch.tensor(expected, dtype=torch.float64))


def test_in_batch_contrast_of_one_direction_is_log_batch_size() -> None:
    same = F.normalize(torch.ones(6, 4, dtype=torch.float64))
    torch.testing.assert_close(losses.in_batch_contrast(same, same), torch.full((6,), math.log(6)).double())


def test_noise_contrast_by_loops() -> None:
    scores, samples = features(4, 7).exp(), 20
    noise = 6 / samples
    expected = [
        -math.log(row[0] / (row[0] + noise + 1e-7)) - sum(math.log(noise / (h + noise + 1e-7)) for h in row[1:])
        for row in scores.tolist()
    ]
    torch.testing.assert_close(losses.noise_contrast(scores, samples), torch.tensor(expected, dtype=torch.float64))


def test_noise_contrast_of_uniform_scores_has_closed_form() -> None:
    """With h = 1 everywhere and K = M: log 2 for the positive and each negative."""
    value = losses.noise_contrast(torch.ones(2, 9, dtype=torch.float64), 8)
    torch.testing.assert_close(value, torch.full((2,), 9 * math.log(2)).double(), rtol=1e-6, atol=0)


# --- ReviewKD


def test_hierarchical_context_by_loops() -> None:
    student, teacher = features(2, 3, 8, 8), features(2, 3, 8, 8, seed=1)
    total = (student - teacher).square().mean((1, 2, 3))
    for level, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
        side = 8 // level
        blocks = (student - teacher).view(2, 3, level, side, level, side).mean((3, 5))
        total = total + weight * blocks.square().mean((1, 2, 3))
    torch.testing.assert_close(losses.hierarchical_context(student, teacher), total / 1.875)


def test_levels_that_are_not_smaller_than_the_map_are_left_out() -> None:
    student, teacher = features(2, 3, 1, 1), features(2, 3, 1, 1, seed=1)
    torch.testing.assert_close(
        losses.hierarchical_context(student, teacher), (student - teacher).square().mean((1, 2, 3))
    )


def test_shallow_stage_learns_from_deeper_fused_map() -> None:
    term = terms.KnowledgeReview((("s1", "t1"), ("s2", "t2")))
    student = Outputs(None, {"s1": features(3, 2, 8, 8), "s2": features(3, 4, 4, 4).requires_grad_()})
    teacher = Outputs(None, {"t1": features(3, 3, 8, 8), "t2": features(3, 5, 4, 4)})
    term.build(student, teacher)
    assert term.fusions is not None
    assert term.fusions[0].attention is None
    compared, deeper = term.fusions[0](student["s2"], None, (4, 4))
    assert compared.shape == (3, 5, 4, 4)
    shallow, _ = term.fusions[1](student["s1"], deeper, (8, 8))
    (gradient,) = torch.autograd.grad(shallow.sum(), student["s2"], allow_unused=True)
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert term(student, teacher, None).shape == (3,)


# --- AB


def test_activation_boundaries_by_loops() -> None:
    expected = []
    for s, t in zip(MAPS.flatten(1).tolist(), TARGETS.flatten(1).tolist(), strict=True):
        expected.append(
            sum(max(0.0, 1.5 - a) ** 2 if b > 0 else max(0.0, 1.5 + a) ** 2 for a, b in zip(s, t, strict=True))
        )
    value = losses.activation_boundaries(MAPS, TARGETS, 1.5)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_boundaries_depend_on_signs_of_teacher_alone_and_end_at_the_margin() -> None:
    student = torch.tensor([[2.0, -1.0, 0.0, -3.0]])
    teacher = torch.tensor([[0.1, 0.0, 5.0, -9.0]])
    assert losses.activation_boundaries(student, teacher).item() == 1.0  # of the third neuron alone
    assert torch.equal(
        losses.activation_boundaries(student, teacher.relu()), losses.activation_boundaries(student, 7 * teacher)
    )


def test_boundary_term_halves_the_weight_of_each_shallower_stage() -> None:
    term = terms.ActivationBoundaries((("s", "t"), ("s", "t")))
    pair = Outputs(None, {"s": MAPS}), Outputs(None, {"t": TARGETS})
    term.build(*pair)
    assert term.connectors is not None
    term.connectors[1].load_state_dict(term.connectors[0].state_dict())
    single = losses.activation_boundaries(term.connectors[0](MAPS), TARGETS) / TARGETS[0].numel()
    torch.testing.assert_close(term(*pair, None), 1.5 * single)


# --- FT


def test_factor_distance_by_loops() -> None:
    expected = []
    for s, t in zip(MAPS.flatten(1).tolist(), TARGETS.flatten(1).tolist(), strict=True):
        expected.append(sum(abs(a - b) for a, b in zip(unit(s), unit(t), strict=True)) / len(s))
    torch.testing.assert_close(losses.factor_distance(MAPS, TARGETS), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(losses.factor_distance(3 * MAPS, 0.1 * TARGETS), losses.factor_distance(MAPS, TARGETS))


def test_factor_term_leaves_its_paraphraser_unchanged() -> None:
    paraphrase = terms.Paraphrase("t", rate=0.5)
    student, teacher = Outputs(None, {"s": features(3, 5, 4, 4)}), Outputs(None, {"t": features(3, 4, 8, 8)})
    paraphrase.build(Outputs(None), teacher)
    assert paraphrase(Outputs(None), teacher, None).shape == (3,)
    before = {name: value.clone() for name, value in paraphrase.state_dict().items()}
    term = terms.FactorTransfer(("s", "t"), paraphrase)
    term.build(student, teacher)
    term(student, teacher, None).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in paraphrase.state_dict().items())
    assert not {id(p) for p in paraphrase.parameters()} & {id(p) for p in term.parameters()}
    assert term.translator is not None
    assert term.translator(student["s"]).shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    "make",
    [
        terms.NeuronSelectivity,
        terms.VariationalInformation,
        terms.KnowledgeReview,
        terms.ActivationBoundaries,
        terms.FeatureOverhaul,
    ],
)
def test_missing_stages_and_features_that_are_no_maps_are_refused(make: Any, refused: Any) -> None:
    with refused("needs at least one pair of stages"):
        make(())
    term = make((("s", "t"),))
    with refused("needs maps (B, C, H, W)", "(5, 4)", "(5, 7)"):
        term.build(Outputs(None, {"s": VECTORS}), Outputs(None, {"t": OTHERS}))
        term(Outputs(None, {"s": VECTORS}), Outputs(None, {"t": OTHERS}), None)
