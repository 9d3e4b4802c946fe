"""Losses equal public code: what it gives for the same tensors, times the factors of docs/reference/losses.md.

Each number was computed once by that code in float64; the page says which code it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage import losses, terms
from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "losses.md"


def wave(*shape: int, frequency: float = 1.0) -> Tensor:
    """Values that every version of torch gives."""
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((frequency * number).sin() + 0.5 * (0.629 * frequency * number + 1).sin()).view(shape)


LOGITS, TEACHER_LOGITS = 3 * wave(8, 10), 4 * wave(8, 10, frequency=2.3)
LABELS = torch.tensor([0, 3, 5, 9, 1, 2, 7, 3])
VECTORS, OTHERS = wave(8, 6, frequency=0.7), wave(8, 9, frequency=1.9)
MAPS, TARGETS = wave(8, 4, 8, 8, frequency=0.9), wave(8, 6, 8, 8, frequency=1.3)
SMALL = wave(8, 4, 4, 4, frequency=0.8)
EQUAL, DEEP, DEEP_EQUAL = (wave(8, c, s, s, frequency=f) for c, s, f in [(4, 8, 1.3), (5, 4, 1.7), (5, 4, 0.6)])
SCORES = wave(8, 7).exp()
MARGIN = torch.tensor([-0.5, -0.2, -1.0, -0.7], dtype=torch.float64)


def fill(module: nn.Module) -> None:
    """Set all parameters to waves, so that they do not depend on a random generator."""
    for parameter in module.parameters():
        parameter.data = 0.3 * wave(*parameter.shape, frequency=1.1)


def variational() -> Tensor:
    """With 1x1 convolutions of equal weights on both sides."""
    term = terms.VariationalInformation((("a", "b"),))
    outputs = Outputs(None, {"a": SMALL}), Outputs(None, {"b": TARGETS})
    term.build(*outputs)
    assert term.predictions is not None
    fill(term.predictions[0].mean)
    return term(*outputs).mean()


def review() -> Tensor:
    """With fusions of equal weights on both sides."""
    term = terms.KnowledgeReview((("a", "a"), ("c", "c")), width=7)
    outputs = Outputs(None, {"a": MAPS, "c": DEEP}), Outputs(None, {"a": TARGETS, "c": DEEP_EQUAL[:, :3]})
    term.build(*outputs)
    assert term.fusions is not None
    fill(term.fusions)
    return term(*outputs).mean()


def contrast_with_memory() -> Tensor:
    """The third of three steps, with equal projections, first memory and negatives on both sides."""
    term = terms.MemoryContrast(torch.arange(20), torch.arange(20) % 4, negatives=6, width=5).double()
    outputs = Outputs(None, {"embedding": VECTORS}), Outputs(None, {"embedding": OTHERS})
    term.build(*outputs)
    assert term.projections is not None
    for layer in term.projections:
        fill(layer)
    term.memory.copy_(0.3 * wave(2, 20, 5, frequency=1.7))
    term._negatives = lambda rows: NEGATIVES  # type: ignore[method-assign]
    values = [term(*outputs, Batch(torch.zeros(8, 1, 1, 1), LABELS, SAMPLES, None)).mean() for _ in range(3)]
    return values[-1]


SAMPLES = torch.tensor([3, 7, 1, 0, 15, 19, 8, 2])
NEGATIVES = (torch.arange(8)[:, None] * 5 + torch.arange(6) * 3 + 4) % 20


def sum_of_boundaries() -> Tensor:
    values = losses.activation_boundaries(MAPS, EQUAL) / 2 + losses.activation_boundaries(DEEP, DEEP_EQUAL)
    return values.mean()


PROBS, TEACHER_PROBS = (LOGITS / 4).softmax(1), (TEACHER_LOGITS / 4).softmax(1)
FLOWS = [losses.flow_matrix(maps, maps.cos()) for maps in (MAPS, EQUAL)]
UNEQUAL = [losses.flow_matrix(*maps) for maps in ((MAPS, DEEP), (EQUAL, DEEP_EQUAL))]

# Row of the page: our value, the value of the public code, and the factor that the page gives.
ROWS: dict[tuple[str, str, str], tuple[Callable[[], Tensor], float, float]] = {
    ("`soft_targets`", "`DistillKL`, RepDistiller", "1"): (
        lambda: losses.soft_targets(LOGITS, TEACHER_LOGITS, 4.0).mean(),
        6.76509582056,
        1,
    ),
    ("`attention_transfer`", "`Attention`, RepDistiller", "1"): (
        lambda: losses.attention_transfer(SMALL, TARGETS).mean(),
        0.0211316419172,
        1,
    ),
    ("`similarity_preserving`", "`Similarity`, RepDistiller", "1"): (
        lambda: losses.similarity_preserving(MAPS, TARGETS),
        0.231418537371,
        1,
    ),
    ("`SimilarityPreserving`", "`Similarity`, RepDistiller", "B / 64"): (
        lambda: terms.SimilarityPreserving("a", "b")(MAPS, TARGETS),
        0.231418537371,
        8 / 64,
    ),
    ("25 `distance_relations` + 50 `angle_relations`", "`RKDLoss`, RepDistiller", "1"): (
        lambda: 25 * losses.distance_relations(VECTORS, OTHERS) + 50 * losses.angle_relations(VECTORS, OTHERS),
        9.42464331543,
        1,
    ),
    ("`probabilistic_transfer`", "`PKT`, RepDistiller", "1"): (
        lambda: losses.probabilistic_transfer(VECTORS, OTHERS),
        0.0410557970856,
        1,
    ),
    ("`ProbabilisticTransfer`", "`PKT`, RepDistiller", "B"): (
        lambda: terms.ProbabilisticTransfer()(VECTORS, OTHERS),
        0.0410557970856,
        8,
    ),
    ("`VariationalInformation`", "`VIDLoss`, RepDistiller", "1"): (variational, 0.822298224006, 1),
    ("`neuron_selectivity`", "`NSTLoss`, RepDistiller", "1"): (
        lambda: losses.neuron_selectivity(SMALL, TARGETS).mean(),
        0.906178427955,
        1,
    ),
    ("`flow_loss`, mean, maps of one size", "`FSP`, RepDistiller", "1"): (
        lambda: losses.flow_loss(FLOWS[0], FLOWS[1], "mean").mean(),
        0.000259394245431,
        1,
    ),
    ("`activation_boundaries`, summed over stages with weights 1/2, 1", "`ABLoss`, RepDistiller", "1000 / 3"): (
        sum_of_boundaries,
        1.00888771887,
        1000 / 3,
    ),
    ("`partial_distance`", "`distillation_loss` / B, clovaai/overhaul-distillation", "1"): (
        lambda: losses.partial_distance(MAPS, EQUAL, MARGIN).mean(),
        256.627798121,
        1,
    ),
    ("`partial_distance`", "`feat_loss`, mdistiller", "1"): (
        lambda: losses.partial_distance(MAPS, EQUAL, MARGIN).mean(),
        256.627798121,
        1,
    ),
    ("`noise_contrast`", "`ContrastLoss`, RepDistiller", "1"): (
        lambda: losses.noise_contrast(SCORES, 20).mean(),
        9.47956538089,
        1,
    ),
    ("`MemoryContrast`", "`CRDLoss`, RepDistiller", "1"): (contrast_with_memory, 18.4075458671, 1),
    ("`decoupled_soft_targets`", "`dkd_loss`, mdistiller", "1"): (
        lambda: losses.decoupled_soft_targets(LOGITS, TEACHER_LOGITS, LABELS, 1, 8, 4.0).mean(),
        57.9707795012,
        1,
    ),
    ("`refined_soft_targets`", "`rld_loss`, zju-SWJ/RLD", "1"): (
        lambda: losses.refined_soft_targets(LOGITS, TEACHER_LOGITS, LABELS, 1, 8, 4.0).mean(),
        33.233281506,
        1,
    ),
    ("`hierarchical_context`", "`hcl_loss`, mdistiller", "1"): (
        lambda: losses.hierarchical_context(MAPS, EQUAL).mean(),
        0.820843243596,
        1,
    ),
    ("`KnowledgeReview`", "`ABF` and `hcl_loss`, mdistiller", "1"): (review, 1.14011893455, 1),
    ("`inter_class_relation`", "`DIST`, hunto/DIST_KD", "1"): (
        lambda: losses.inter_class_relation(LOGITS, TEACHER_LOGITS).mean(),
        1.05062499736,
        1,
    ),
    ("`intra_class_relation`", "`DIST`, hunto/DIST_KD", "1"): (
        lambda: losses.intra_class_relation(LOGITS, TEACHER_LOGITS),
        1.09157658253,
        1,
    ),
    ("`standardized_soft_targets`", "`kd_loss`, sunshangquan/logit-standardization-KD", "1"): (
        lambda: losses.standardized_soft_targets(LOGITS, TEACHER_LOGITS, 2.0).mean(),
        0.884920727018,
        1,
    ),
    ("`sample_correlations`", "`bc_loss`, Jin-Ying/Multi-Level-Logit-Distillation", "1"): (
        lambda: losses.sample_correlations(PROBS, TEACHER_PROBS),
        0.0107227588752,
        1,
    ),
    ("`class_correlations`", "`cc_loss`, Jin-Ying/Multi-Level-Logit-Distillation", "1"): (
        lambda: losses.class_correlations(PROBS, TEACHER_PROBS),
        0.0223490555997,
        1,
    ),
    ("`factor_distance`", "`FTLoss`, torchdistill", "1"): (
        lambda: losses.factor_distance(MAPS, EQUAL).mean(),
        0.0719827772221,
        1,
    ),
    ("square root of `correlation_congruence`", "`CCKDLoss`, torchdistill, of unit vectors", "B"): (
        lambda: losses.correlation_congruence(VECTORS, OTHERS).sqrt(),
        0.0318835607372,
        8,
    ),
}

# Row of the page: our value, and that of public code with another definition.
OTHER_DEFINITIONS: dict[tuple[str, str], tuple[Callable[[], Tensor], float]] = {
    ("`correlation_congruence`", "`Correlation`, RepDistiller"): (
        lambda: losses.correlation_congruence(VECTORS, OTHERS[:, :6]),
        6.39015946253,
    ),
    ("`factor_distance`", "`FactorTransfer`, RepDistiller"): (
        lambda: losses.factor_distance(MAPS, EQUAL).mean(),
        0.0651163721127,
    ),
    ("`flow_matrix`, maps of two sizes", "`FSP`, RepDistiller"): (
        lambda: losses.flow_loss(UNEQUAL[0], UNEQUAL[1], "mean").mean(),
        0.00586596661485,
    ),
    ("`virtual_soft_targets`", "`loss_kd_regularization`, yuanli2333/Teacher-free-Knowledge-Distillation"): (
        lambda: losses.virtual_soft_targets(LOGITS, LABELS).mean(),
        0.184492123347,
    ),
}


@pytest.mark.parametrize("row", ROWS, ids=" of ".join)
def test_value_is_that_of_public_code_times_the_factor(row: tuple[str, str, str]) -> None:
    value, public, factor = ROWS[row]
    assert value().item() == pytest.approx(factor * public, rel=1e-6)
    assert f"| {' | '.join(row)} |" in PAGE.read_text()


@pytest.mark.parametrize("row", OTHER_DEFINITIONS, ids=" of ".join)
def test_other_definitions_give_other_values(row: tuple[str, str]) -> None:
    """Once they agree, the page is wrong."""
    value, public = OTHER_DEFINITIONS[row]
    assert value().item() != pytest.approx(public, rel=1e-2)
    assert f"| {' | '.join(row)} |" in PAGE.read_text()


def test_page_has_no_other_rows() -> None:
    table = PAGE.read_text().partition("## Comparison with public code")[2]
    assert table.count("\n| `") + table.count("\n| 25") + table.count("\n| square") == len(ROWS) + len(
        OTHER_DEFINITIONS
    )
