"""The method abstention: losses, phases, the warning, and the resulting student."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.errors import TutelageWarning
from tutelage.losses import probability_shift
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
from tutelage.runs import execute, open_model
from tutelage.terms import View
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=3, batch_size=16, lr=0.05)


class RecordingRun(Run):
    """A run that records its learners instead of training them."""

    learners: tuple[Learner, ...] = ()

    def fit(self, *learners: Learner, **_: Any) -> FitResult:
        self.learners = learners
        return FitResult((), {})


@pytest.fixture
def learner(tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware) -> Callable[..., Learner]:
    """``learner(**settings)``: the learner of the method before training, with a trained teacher."""
    teacher = trained_model()

    def make(**settings: Any) -> Learner:
        run = RecordingRun(tiny_data, lambda: tiny_model(2), [teacher], hardware=on_cpu)
        find("abstention")(run, **settings)
        (method_learner,) = run.learners
        return method_learner

    return make


def pass_of(labels: Tensor) -> ForwardPass:
    generator = torch.Generator().manual_seed(0)
    s, v = (2 * torch.randn(2, len(labels), 5, generator=generator, dtype=torch.float64)).unbind()
    index = torch.arange(len(labels))
    batch = Batch(torch.zeros(len(labels), 1, 8, 8), labels, index, None)
    return ForwardPass(batch, Outputs(s[:, :4], {"abstain": s[:, 4:]}), Outputs(v[:, :4]))


def total(method_learner: Learner, forward_pass: ForwardPass, progress: float) -> float:
    passes: dict[View | None, ForwardPass] = {None: forward_pass}
    return method_learner.loss(passes, progress)[0].item()


IN_DOUBT = pytest.mark.filterwarnings("ignore:the teacher's largest probability")
LABELS = torch.tensor([0, 1, 2, 3, 3, -1])


def kl(q: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    return temperature**2 * (q * (q.log() - (logits / temperature).log_softmax(1))).sum(1)


def test_the_two_term_loss(learner: Callable[..., Learner]) -> None:
    """T^2 KL(A(q) || p) + weight l, with the label loss instead of l during the warm-up."""
    method_learner, forward_pass = learner(payoff=2.5, temperature=3.0, weight=0.7, warm_up=0.25), pass_of(LABELS)
    s, a = forward_pass.student["logits"], forward_pass.student["abstain"]
    assert forward_pass.teacher is not None
    q = probability_shift((forward_pass.teacher["logits"] / 3).softmax(1), LABELS)
    kd = kl(q, s, 3.0).mean()
    p = torch.cat([s, a], 1).softmax(1)
    is_labelled = LABELS >= 0
    expected_loss = -(p[range(6), LABELS.clamp(min=0)] + p[:, -1] / 2.5).log().where(is_labelled, 0.0).mean()
    ce = torch.nn.functional.cross_entropy(s, LABELS, ignore_index=-1, reduction="none").mean()
    assert total(method_learner, forward_pass, 0.25) == pytest.approx(float(kd + 0.7 * expected_loss))
    assert total(method_learner, forward_pass, 0.24) == pytest.approx(float(kd + 0.7 * ce))


@IN_DOUBT
def test_the_soft_bet(learner: Callable[..., Learner]) -> None:
    """-sum_j A(q)_j log(p_j + p_a / o) at T = 1, without label loss; KL(A(q) || p) during the warm-up."""
    method_learner, forward_pass = learner(variant="soft_bet", payoff=3.5, warm_up=0.5), pass_of(LABELS)
    s, a = forward_pass.student["logits"], forward_pass.student["abstain"]
    assert forward_pass.teacher is not None
    q = probability_shift(forward_pass.teacher["logits"].softmax(1), LABELS)
    p = torch.cat([s, a], 1).softmax(1)
    expected_loss = -(q * (p[:, :-1] + p[:, -1:] / 3.5).log()).sum(1).mean()
    assert total(method_learner, forward_pass, 0.5) == pytest.approx(float(expected_loss))
    assert total(method_learner, forward_pass, 0.49) == pytest.approx(float(kl(q, s).mean()))


def test_warm_up_does_not_train_abstention_output(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    """It ends exactly after one of three epochs: the output first changes in the second."""
    rows: list[Tensor] = []
    networks: list[Tapped] = []

    def student() -> Tapped:
        networks.append(tiny_model(2))
        return networks[-1]

    def report(_: Any) -> None:
        rows.append(networks[0].module.get_parameter("fc.abstain.weight").detach().clone())

    run = Run(tiny_data, student, [trained_model()], recipe=SHORT, hardware=on_cpu, report=report)
    trained_student = find("abstention")(run, warm_up=1 / 3)
    torch.manual_seed(0)
    assert trained_student.module is networks[0].module
    assert not torch.equal(rows[1], rows[0])
    assert not torch.equal(rows[2], rows[1])
    reference_run = Run(tiny_data, lambda: tiny_model(2), [trained_model()], recipe=SHORT, hardware=on_cpu)
    untouched = find("abstention")(reference_run, warm_up=1.0)
    assert torch.equal(untouched.module.get_parameter("fc.abstain.weight"), rows[0])


@pytest.mark.parametrize("warm_up", [0.0, 0.5])
def test_weight_zero_uses_adjusted_teacher_only(warm_up: float, learner: Callable[..., Learner]) -> None:
    method_learner, forward_pass = learner(weight=0, warm_up=warm_up), pass_of(LABELS)
    assert forward_pass.teacher is not None
    q = probability_shift((forward_pass.teacher["logits"] / 4).softmax(1), LABELS)
    for progress in (0.0, 0.9):
        assert total(method_learner, forward_pass, progress) == pytest.approx(
            float(kl(q, forward_pass.student["logits"], 4.0).mean())
        )


@IN_DOUBT
def test_the_adjustments_differ(learner: Callable[..., Learner]) -> None:
    forward_pass = pass_of(LABELS)
    values = [
        total(learner(variant=variant, payoff=3.5, adjustment=adjustment), forward_pass, 0.9)
        for variant in ("two_term", "soft_bet")
        for adjustment in ("shift", "replacement")
    ]
    assert len(set(values)) == 4


# --- errors and warnings


@pytest.mark.parametrize("payoff", [1.0, 0.5])
def test_payoff_of_one_or_less_is_refused(payoff: float, learner: Callable[..., Learner], refused: Any) -> None:
    with refused("payoff", "greater than 1"):
        learner(payoff=payoff)


@pytest.mark.parametrize("payoff", [4.0, 6.0])
def test_payoff_of_number_of_classes_or_more_is_refused(
    payoff: float, learner: Callable[..., Learner], refused: Any
) -> None:
    with refused("the number of classes, 4,", f"got {payoff:g}", "use for example 2.2"):
        learner(payoff=payoff)


@pytest.mark.parametrize(
    "invalid_settings",
    [{"variant": "both"}, {"adjustment": "none"}, {"temperature": 0}, {"weight": -1}, {"warm_up": 1.5}],
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], learner: Callable[..., Learner], refused: Any
) -> None:
    with refused(next(iter(invalid_settings))):
        learner(**invalid_settings)


def test_teacher_is_required(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    for variant in ("two_term", "soft_bet"):
        with refused("needs a teacher"):
            find("abstention")(Run(tiny_data, lambda: tiny_model(2), hardware=on_cpu), variant=variant)


def test_uncertain_teacher_causes_warning_for_soft_bet(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """The largest of an untrained teacher's four probabilities is about 0.3, below 1 / 2.2 = 0.45."""

    def train(**settings: Any) -> None:
        run = RecordingRun(tiny_data, lambda: tiny_model(2), [tiny_model(1), tiny_model(3)], hardware=on_cpu)
        find("abstention")(run, **settings)

    with pytest.warns(TutelageWarning, match=r"0\.\d\d on average.*abstain from everything; raise the payoff \(2\.2\)"):
        train(variant="soft_bet")
    train()


# --- training


@IN_DOUBT
@pytest.mark.parametrize("variant", ["two_term", "soft_bet"])
def test_student_trains_and_can_be_loaded(variant: str, tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    teacher = Config(data=tiny_npz, student="resnet8x0.5", epochs=12, batch_size=16, lr=0.1, device="cpu")
    execute(teacher, tmp_path / "teacher")
    config = teacher.replace(
        student="resnet8x0.25",
        teacher=(str(tmp_path / "teacher"),),
        method="abstention",
        settings={"variant": variant, "payoff": 3.0, "warm_up": 0.5},
    )
    result = execute(config, tmp_path / "run")
    test = result.metrics["test"]
    assert test["accuracy"] > 0.5
    assert 0 < test["abstain_probability"] < 1
    assert 0 <= test["aurc_by_abstention"] <= 1
    curves = test["risk_coverage"], test["risk_coverage_by_abstention"]
    assert curves[0]["risk"][-1] == curves[1]["risk"][-1] == pytest.approx(1 - test["accuracy"])
    json.dumps(result.metrics, allow_nan=False)
    assert read_metadata(tmp_path / "run" / "student.safetensors")["surgery"] == [{"operation": "abstain"}]
    assert isinstance(tiny_data.test.inputs, Tensor)
    pixels, roles = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255, ("logits", "abstain")
    expected = result.model.eval().tap(pixels, roles)
    for model in (open_model(str(tmp_path / "run"), tiny_data), execute(config, tmp_path / "run").model):
        outputs = model.eval().tap(pixels, roles)
        assert all(torch.equal(outputs[role], expected[role]) for role in roles)
    # it can be a teacher, by its classes
    further = execute(teacher.replace(method="hinton", teacher=(str(tmp_path / "run"),), epochs=1), tmp_path / "next")
    assert math.isfinite(further.metrics["test"]["nll"])
    assert "abstain_probability" not in further.metrics["test"]
