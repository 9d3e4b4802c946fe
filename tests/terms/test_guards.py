"""Precision, range, shapes and labels of every public loss and every term."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage import losses, terms
from tutelage.data.batch import Batch
from tutelage.methods.abstention.gambler import Gambler, SoftBet, gambler, soft_bet
from tutelage.methods.akdg.adversarial import hinge
from tutelage.methods.gccs.loss import GaussianSimplex, gaussian_simplex
from tutelage.methods.mean_teacher_lc.local_clustering import local_clustering
from tutelage.methods.mslg.labels import reverse_kl
from tutelage.models.outputs import Outputs
from tutelage.terms.entropy import Entropy, entropy

GENERATOR = torch.Generator().manual_seed(3)


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


LOGITS, OTHER, LABELS = 3 * random_tensor(6, 5), 3 * random_tensor(6, 5), torch.tensor([0, 1, 2, 3, 4, -1])
MAPS, MAPS2, FEATURES, FEATURES2, ONE = (
    random_tensor(6, 3, 4, 4),
    random_tensor(6, 3, 4, 4),
    random_tensor(6, 7),
    random_tensor(6, 7),
    random_tensor(6, 1),
)
PROBS = OTHER.softmax(1)

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "activation_boundaries": (MAPS, MAPS2),
    "class_correlations": (PROBS, LOGITS.softmax(1)),
    "correlation_congruence": (FEATURES, FEATURES2),
    "decoupled_soft_targets": (LOGITS, OTHER, LABELS),
    "factor_distance": (MAPS, MAPS2),
    "gaussian_information": (MAPS, MAPS2, torch.tensor([1.0, 2.0, 3.0])),
    "hierarchical_context": (MAPS, MAPS2),
    "in_batch_contrast": (FEATURES, FEATURES2),
    "inter_class_relation": (LOGITS, OTHER),
    "intra_class_relation": (LOGITS, OTHER),
    "neuron_selectivity": (MAPS, MAPS2),
    "noise_contrast": (PROBS, 30),
    "partial_distance": (MAPS, MAPS2, torch.tensor([-0.5, -0.2, -1.0])),
    "probabilistic_transfer": (FEATURES, FEATURES2),
    "refined_soft_targets": (LOGITS, OTHER, LABELS),
    "sample_correlations": (PROBS, LOGITS.softmax(1)),
    "standardized_soft_targets": (LOGITS, OTHER),
    "virtual_soft_targets": (LOGITS, LABELS),
    "angle_relations": (FEATURES, FEATURES2),
    "attention_map": (MAPS,),
    "attention_transfer": (MAPS, MAPS2),
    "cross_entropy": (LOGITS, LABELS),
    "distance_relations": (FEATURES, FEATURES2),
    "kl_divergence": (LOGITS.log_softmax(1), OTHER.log_softmax(1)),
    "entropy": (LOGITS,),
    "flow_loss": (MAPS.flatten(2), MAPS2.flatten(2)),
    "flow_matrix": (MAPS, MAPS2),
    "gambler": (LOGITS, ONE, LABELS, 2.0),
    "gaussian_simplex": (LOGITS, torch.tensor([0, 0, 0, 1, 1, 1])),
    "hint_loss": (MAPS, MAPS2),
    "label_smooth_replacement": (PROBS, LABELS),
    "local_clustering": (FEATURES, FEATURES2, 2.0),
    "channel_divergence": (MAPS, MAPS2),
    "map_cross_entropy": (MAPS[:, :1], MAPS2[:, 0].sigmoid()),
    "map_soft_targets": (MAPS[:, :1], MAPS2[:, :1]),
    "mimicry_loss": (LOGITS, OTHER),
    "probability_shift": (PROBS, LABELS),
    "reverse_kl": (LOGITS, OTHER.log_softmax(1)),
    "similarity_preserving": (FEATURES, FEATURES2),
    "sinkhorn_divergence": (LOGITS, OTHER),
    "soft_bet": (LOGITS, ONE, PROBS, 2.0),
    "soft_targets": (LOGITS, OTHER),
    "softmax_mse": (LOGITS, OTHER),
    "triplet_loss": (FEATURES.square().sum(1), FEATURES2.square().sum(1)),
}
HINGE = {"hinge": (ONE,)}
OF_METHODS: tuple[Callable[..., Tensor], ...] = (
    entropy,
    gambler,
    gaussian_simplex,
    hinge,
    local_clustering,
    reverse_kl,
    soft_bet,
)
NO_LOSSES = {"draw_triplets", "regressor"}


def test_every_public_loss_is_in_the_table() -> None:
    assert {*losses.__all__} | {loss.__name__ for loss in OF_METHODS} == {*FUNCTIONS, *HINGE, *NO_LOSSES}


LOSSES: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(losses, name) for name in losses.__all__},
    **{loss.__name__: loss for loss in OF_METHODS},
}


def call(name: str, *arguments: Any) -> Tensor:
    return LOSSES[name](*arguments, **({"genuine": True} if name in HINGE else {}))


@pytest.mark.parametrize("name", {**FUNCTIONS, **HINGE})
def test_autocast_does_not_change_results(name: str) -> None:
    arguments = {**FUNCTIONS, **HINGE}[name]
    expected = call(name, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(name, *arguments), expected)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", {**FUNCTIONS, **HINGE})
def test_half_precision_is_computed_in_float32(name: str, half: torch.dtype) -> None:
    arguments = {**FUNCTIONS, **HINGE}[name]
    rounded_arguments = [a.to(half) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    full = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in rounded_arguments]
    value = call(name, *rounded_arguments)
    assert value.dtype == torch.float32
    assert torch.equal(value, call(name, *full))


# --- NaN


@pytest.mark.parametrize("index", range(2))
@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"attention_map", "entropy", "flow_matrix"}))
def test_nan_is_propagated(name: str, index: int) -> None:
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in FUNCTIONS[name]]
    if not isinstance(arguments[index], Tensor) or not arguments[index].is_floating_point():
        return
    arguments[index].view(-1)[0] = torch.nan
    assert call(name, *arguments).isnan().any()


def test_nan_of_teacher_is_propagated() -> None:
    teacher = torch.tensor([[torch.nan, 0.0, 1.0], [0.0, -math.inf, 1.0]])
    value = losses.soft_targets(torch.zeros(2, 3), teacher)
    assert value.isnan().tolist() == [True, False]
    assert entropy(torch.tensor([[torch.nan, 0.0]])).isnan().all()


# --- scale

SCALES = [1e-30, 1e-19, 1e-7, 1.0, 1e10, 1e19, 1e30]
FREE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "similarity_preserving": losses.similarity_preserving,
    "angle_relations": losses.angle_relations,
    "distance_relations": losses.distance_relations,
    "attention_transfer": lambda s, t: losses.attention_transfer(s.view(6, 1, 1, 7), t.view(6, 1, 1, 7)),
    "correlation_congruence": losses.correlation_congruence,
    "factor_distance": lambda s, t: losses.factor_distance(s.view(6, 1, 1, 7), t.view(6, 1, 1, 7)),
    "neuron_selectivity": lambda s, t: losses.neuron_selectivity(s.view(6, 1, 1, 7), t.view(6, 1, 1, 7)),
    "probabilistic_transfer": losses.probabilistic_transfer,
}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FREE)
def test_losses_are_invariant_to_scale_of_either_side(name: str, scale: float, side: int) -> None:
    """The value, and the gradient times the scale, which is the derivative by the logarithm of a length."""
    expected_at = [FEATURES.clone().requires_grad_(), FEATURES2.clone()]
    expected = FREE[name](*expected_at)
    scaled_arguments = [FEATURES.clone(), FEATURES2.clone()]
    scaled_arguments[side] = scaled_arguments[side] * scale
    scaled_arguments[0].requires_grad_()
    value = FREE[name](*scaled_arguments)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)
    expected.sum().backward()
    value.sum().backward()
    factor = scale if side == 0 and 1e-19 <= scale <= 1e19 else 1.0
    if side == 0 and factor == 1.0 and scale != 1.0:
        assert scaled_arguments[0].grad is not None
        assert scaled_arguments[0].grad.isfinite().all()
        return
    torch.testing.assert_close(scaled_arguments[0].grad * factor, expected_at[0].grad, rtol=1e-3, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-10, 2.0**10, 2.0**60])
@pytest.mark.parametrize("name", ["similarity_preserving", "angle_relations", "distance_relations"])
def test_scaling_by_power_of_two_is_exact(name: str, scale: float) -> None:
    assert torch.equal(FREE[name](FEATURES * scale, FEATURES2), FREE[name](FEATURES, FEATURES2))


@pytest.mark.parametrize("scale", [1e-15, 1e-7, 1e10, 1e15])
@pytest.mark.parametrize("term", [terms.Hint("map", "map", "relative"), terms.Flow((("map", "map"),) * 2)])
def test_relative_losses_are_invariant_to_common_scale(term: terms.Term, scale: float) -> None:
    def value(factor: float) -> Tensor:
        student, teacher = Outputs(None, {"map": MAPS * factor}), Outputs(None, {"map": MAPS2 * factor})
        term.build(student, teacher)
        return term(student, teacher, None)

    torch.testing.assert_close(value(scale), value(1.0), rtol=1e-4, atol=0)


# --- the class axis


def batch(targets: Tensor) -> Batch:
    return Batch(torch.zeros(len(targets), 1, 2, 2), targets, torch.arange(len(targets)), None)


WRONG_SHAPES = [(2, 5, 3, 3), (2, 7, 5), (5,)]
OF_PLACES = {"SoftTargets", "Mimicry", "CrossEntropy", "OnRole"}  # also accept logits (B, T, C) and (B, C, H, W)


@pytest.mark.parametrize("shape", WRONG_SHAPES)
@pytest.mark.parametrize(
    "term",
    [
        terms.SoftTargets(),
        terms.Mimicry(),
        terms.SoftmaxMSE(),
        terms.AdjustedSoftTargets(),
        terms.DecoupledSoftTargets(),
        terms.RefinedSoftTargets(),
        terms.InterClassRelation(),
        terms.IntraClassRelation(),
        terms.MultiLevelCorrelations(),
        terms.StandardizedSoftTargets(),
        terms.VirtualTeacher(),
        terms.CrossEntropy(),
        Entropy(),
        Gambler(2.0),
        SoftBet(2.0),
        GaussianSimplex("logits"),
        terms.OnRole("branch", terms.SoftTargets()),
    ],
    ids=lambda term: type(term).__name__,
)
def test_logits_with_other_axes_are_refused(term: terms.Term, shape: tuple[int, ...], refused: Any) -> None:
    logits = torch.zeros(shape)
    outputs = Outputs(logits, {"abstain": torch.zeros(shape[0], 1), "branch": logits})
    if len(shape) > 1 and type(term).__name__ in OF_PLACES:
        pytest.skip("tests/terms/test_plain.py")
    with refused("logits must be (B, C)", shape):
        term(outputs, outputs, batch(torch.zeros(shape[0], dtype=torch.int64)))


@pytest.mark.parametrize(
    "loss",
    [
        losses.soft_targets,
        losses.softmax_mse,
        losses.standardized_soft_targets,
        losses.inter_class_relation,
        losses.intra_class_relation,
        lambda z, v: losses.decoupled_soft_targets(z, v, LABELS),
        lambda z, v: losses.refined_soft_targets(z, v, LABELS),
    ],
)
def test_logits_that_would_be_broadcast_are_refused(loss: Callable[..., Tensor], refused: Any) -> None:
    for other in ((6, 1), (1, 5), (6, 4)):
        with refused("(6, 5)", other, "the same samples and classes"):
            loss(LOGITS, torch.zeros(other))


LABEL_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda labels: losses.cross_entropy(LOGITS, labels),
    "gambler": lambda labels: gambler(LOGITS, ONE, labels, 2.0),
    "probability_shift": lambda labels: losses.probability_shift(PROBS, labels),
    "label_smooth_replacement": lambda labels: losses.label_smooth_replacement(PROBS, labels),
    "gaussian_simplex": lambda labels: gaussian_simplex(LOGITS, labels),
    "draw_triplets": lambda labels: losses.draw_triplets(labels)[0],
    "decoupled_soft_targets": lambda labels: losses.decoupled_soft_targets(LOGITS, OTHER, labels),
    "refined_soft_targets": lambda labels: losses.refined_soft_targets(LOGITS, OTHER, labels),
    "virtual_soft_targets": lambda labels: losses.virtual_soft_targets(LOGITS, labels),
}


@pytest.mark.parametrize("class_number", [-100, -2, 5])
@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_invalid_class_numbers_are_refused(name: str, class_number: int, refused: Any) -> None:
    labels = LABELS.clone()
    labels[2] = class_number
    if (name, class_number) == ("cross_entropy", -100):  # means no label, as in torch
        return
    if (name, class_number) == ("draw_triplets", 5):  # it does not know the number of classes
        return
    with refused(f"label {class_number} does not exist", "-1 stands for no label"):
        LABEL_LOSSES[name](labels)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_targets_of_wrong_shape_or_type_are_refused(name: str, refused: Any) -> None:
    for targets in (torch.rand(6), torch.rand(6, 1, 1), LABELS[:, None], LABELS.int(), LABELS > 0):
        with refused("labels must be (B,", tuple(targets.shape)):
            LABEL_LOSSES[name](targets)


# --- features that would be broadcast

COMPARED: dict[str, tuple[Tensor, Tensor]] = {
    "angle_relations": (FEATURES, FEATURES2[:1]),
    "attention_transfer": (MAPS, MAPS2[:1]),
    "distance_relations": (FEATURES[:1], FEATURES2),
    "flow_loss": (MAPS.flatten(2), MAPS2.flatten(2)[:1]),
    "flow_matrix": (MAPS, MAPS2[:1]),
    "hint_loss": (MAPS, MAPS2[:1]),
    "similarity_preserving": (FEATURES, FEATURES2[:1]),
    "activation_boundaries": (MAPS, MAPS2[:1]),
    "correlation_congruence": (FEATURES, FEATURES2[:1]),
    "factor_distance": (MAPS, MAPS2[:1]),
    "hierarchical_context": (MAPS, MAPS2[:1]),
    "in_batch_contrast": (FEATURES, FEATURES2[:1]),
    "channel_divergence": (MAPS, MAPS2[:1]),
    "map_cross_entropy": (MAPS[:, :1], MAPS2[:1, 0].sigmoid()),
    "map_soft_targets": (MAPS[:, :1], MAPS2[:1, :1]),
    "neuron_selectivity": (MAPS, MAPS2[:1]),
    "probabilistic_transfer": (FEATURES, FEATURES2[:1]),
}


@pytest.mark.parametrize("name", COMPARED)
def test_single_sample_is_not_broadcast(name: str, refused: Any) -> None:
    first, second = COMPARED[name]
    counts = ["(6,", "(1,"] if name != "flow_loss" else []
    with refused(*counts):
        call(name, first, second)


def test_flows_and_hints_of_different_shapes_are_refused(refused: Any) -> None:
    with refused("(6, 7)", "(6, 1)", "regressor("):
        losses.hint_loss(FEATURES, ONE)
    tokens = random_tensor(6, 5, 3)
    with refused("(6, 5, 3)", "tokens.transpose(1, 2).unsqueeze(3)"):
        losses.flow_matrix(tokens, tokens)
    as_maps = tokens.transpose(1, 2).unsqueeze(3)
    torch.testing.assert_close(losses.flow_matrix(as_maps, as_maps), tokens.mT @ tokens / 5)
