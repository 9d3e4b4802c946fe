"""Distiller: a student, a teacher and terms in one module, trained in a custom loop."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tutelage
from tutelage.attacks.boundary import BoundarySamples
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, NoAugmentation
from tutelage.losses import cross_entropy, soft_targets
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, OwnOutputs, Peers
from tutelage.terms import AttentionTransfer, CrossEntropy, DistanceRelations, Hint, SoftTargets
from tutelage.training import Distiller, Learner, fit
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


def hinton() -> dict[str, Any]:
    return {"ce": 0.1 * CrossEntropy(), "kd": 0.9 * SoftTargets(4.0)}


def features() -> dict[str, Any]:
    return {
        "at": AttentionTransfer((("stage1", "stage1"), ("stage2", "stage2"))),
        "hint": 2 * Hint("stage2", "stage2", "mean"),
        "rkd": DistanceRelations(),
    }


@pytest.fixture
def pair(tiny_model: Net) -> tuple[nn.Module, nn.Module]:
    """An unwrapped student and an unwrapped, wider teacher."""
    return tiny_model(0).module, tiny_model(1, width=6, dropout=0.5).module


def hook_count(*modules: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for module in modules for m in module.modules())


def test_distiller_is_exported_by_the_package() -> None:
    assert tutelage.Distiller is Distiller


def test_distiller_returns_each_weighted_loss_and_their_sum(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    distiller = Distiller(student, teacher, hinton())
    student_logits, teacher_logits = copy.deepcopy(student)(IMAGES), copy.deepcopy(teacher).eval()(IMAGES)
    losses = distiller(IMAGES, LABELS)
    assert list(losses) == ["ce", "kd", "loss"]
    assert torch.equal(losses["ce"], 0.1 * F.cross_entropy(student_logits, LABELS))
    assert torch.equal(losses["kd"], 0.9 * soft_targets(student_logits, teacher_logits, 4.0).mean())
    assert torch.equal(losses["loss"], losses["ce"] + losses["kd"])
    assert distiller.logits is not None
    assert torch.equal(distiller.logits, student_logits)
    assert not distiller.logits.requires_grad


@pytest.mark.parametrize("terms", [hinton, features])
def test_student_and_terms_get_gradients_and_the_teacher_does_not_change(
    terms: Callable[[], dict[str, Any]], pair: tuple[nn.Module, nn.Module], state_of: Any, changed: Any
) -> None:
    student, teacher = pair
    before = state_of(teacher)
    distiller = Distiller(student, teacher, terms()).build(IMAGES)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in distiller.parameters()}
    start = state_of(distiller)
    for _ in range(3):
        distiller.train()
        teacher.train()  # the distiller must undo this
        optimizer.zero_grad()
        distiller(IMAGES, LABELS)["loss"].backward()
        optimizer.step()
    assert changed(before, state_of(teacher)) == set()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    updated_names = changed(start, state_of(distiller))
    names_with_gradient = {name for name, parameter in distiller.named_parameters() if parameter.grad is not None}
    assert names_with_gradient <= updated_names
    assert ("student.module.fc.weight" in names_with_gradient) == (
        terms is hinton
    )  # the feature terms do not reach the classifier
    assert any(name.startswith("terms.hint.regressor") for name in names_with_gradient) == (terms is features)
    assert hook_count(student, teacher) == 0


def test_custom_loop_trains_to_the_same_weights_as_fit(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """Training from the same weights, with one labelled batch per step."""
    data = Data("tiny", tiny_data.classes, tiny_data.test, tiny_data.test, None, NoAugmentation())
    students = tiny_model(0), tiny_model(0)
    teacher = tiny_model(1, width=6)
    recipe = Recipe(
        epochs=3, batch_size=16, lr=0.05, momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant"
    )
    fit(Learner(students[0], Frozen(teacher), hinton()), data=data, recipe=recipe, execution=Execution.on(on_cpu))
    x = data.test.inputs.movedim(3, 1).float() / 255
    distiller = Distiller(students[1], teacher, hinton())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        distiller(x, data.test.labels)["loss"].backward()
        optimizer.step()
    for name, value in state_of(students[0]).items():
        torch.testing.assert_close(state_of(students[1])[name], value, msg=name)


def test_state_dict_holds_the_student_and_the_terms_without_the_teacher(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    student, teacher = pair
    distiller = Distiller(student, teacher, features()).build(IMAGES)
    keys = set(distiller.state_dict())
    student_keys = {f"student.module.{key}" for key in student.state_dict()}
    assert keys == student_keys | {"terms.hint.regressor.weight", "terms.hint.regressor.bias"}
    assert distiller.student.module is student
    other = Distiller(copy.deepcopy(student), teacher, features()).build(IMAGES)
    other.load_state_dict(distiller.state_dict())
    assert torch.equal(other(IMAGES)["loss"], distiller(IMAGES)["loss"])
    assert torch.equal(copy.deepcopy(distiller)(IMAGES)["loss"], distiller(IMAGES)["loss"])


def test_teacher_is_converted_with_the_distiller(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    outer = nn.Sequential(Distiller(student, teacher, features()).build(IMAGES)).double()
    assert {tensor.dtype for tensor in teacher.parameters()} == {torch.float64}
    assert outer[0](IMAGES.double())["loss"].dtype == torch.float64


def test_build_does_not_change_the_networks(pair: tuple[nn.Module, nn.Module], state_of: Any, changed: Any) -> None:
    student, teacher = pair
    before = state_of(student), state_of(teacher)
    distiller = Distiller(student, teacher, features()).build(IMAGES)
    assert changed(before[0], state_of(student)) == changed(before[1], state_of(teacher)) == set()
    assert all(module.training for module in student.modules())
    assert distiller.logits is None


def test_unbuilt_term_parameters_are_refused(pair: tuple[nn.Module, nn.Module], refused: Any) -> None:
    distiller = Distiller(*pair, features())
    for _ in range(2):
        with refused("'hint' has parameters", "distiller.build(x)"):
            distiller(IMAGES, LABELS)
    Distiller(*pair, {"rkd": DistanceRelations(), "hint": Hint("stage1", "stage1", use_regressor="never")})
    same_shapes = Distiller(pair[0], copy.deepcopy(pair[0]), {"hint": Hint("stage1", "stage1")})
    assert same_shapes(IMAGES)["loss"].shape == ()  # needs no regressor


def test_weight_schedules_require_the_progress(pair: tuple[nn.Module, nn.Module], refused: Any) -> None:
    terms = {"kd": SoftTargets(), "hint": (lambda progress: 4 * progress) * Hint("stage1", "stage1")}
    distiller = Distiller(*pair, terms).build(IMAGES)
    assert "terms.hint.regressor.weight" in distiller.state_dict()  # also if the weight is 0 at the start
    with refused("weight of 'hint' is a function of progress", "progress=step / steps"):
        distiller(IMAGES)
    pair[0].eval()
    values = [distiller(IMAGES, progress=progress)["hint"] for progress in (0.0, 0.25, 0.5)]
    assert values[0].item() == 0
    torch.testing.assert_close(values[2], 2 * values[1])


def test_labels_are_required_only_by_terms_that_read_them(pair: tuple[nn.Module, nn.Module], refused: Any) -> None:
    with refused("the term 'ce' reads labels", "distiller(x, y)"):
        Distiller(*pair, hinton())(IMAGES)
    assert list(Distiller(*pair, {"kd": SoftTargets(), "ce": 0 * CrossEntropy()})(IMAGES)) == ["kd", "ce", "loss"]


def test_unlabelled_samples_are_left_out_of_the_mean(pair: tuple[nn.Module, nn.Module]) -> None:
    student = pair[0].eval()
    labels = LABELS.masked_fill(LABELS == 2, -100)
    losses = Distiller(student, pair[1], {"ce": CrossEntropy(), "kd": SoftTargets()})(IMAGES, labels)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(student(IMAGES), labels))
    torch.testing.assert_close(losses["kd"], soft_targets(student(IMAGES), pair[1].eval()(IMAGES)).mean())
    torch.testing.assert_close(losses["ce"], cross_entropy(student(IMAGES), labels).sum() / 6)


def test_wrapped_networks_keep_their_input_normalisation(tiny_model: Net) -> None:
    student, teacher = Tapped(tiny_model(0).module, [0.5], [0.25]), Tapped(tiny_model(1).module, [0.1], [2.0])
    modules = [copy.deepcopy(model.module) for model in (student, teacher)]
    losses = Distiller(student, teacher, {"kd": SoftTargets()})(IMAGES)
    expected = soft_targets(modules[0]((IMAGES - 0.5) / 0.25), modules[1].eval()((IMAGES - 0.1) / 2.0)).mean()
    torch.testing.assert_close(losses["kd"], expected)


def test_source_may_be_an_ensemble_none_an_ema_or_own_outputs(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    several = Distiller(student, [teacher, copy.deepcopy(teacher)], {"kd": SoftTargets()})
    torch.testing.assert_close(
        several(IMAGES)["kd"], Distiller(copy.deepcopy(student), teacher, {"kd": SoftTargets()})(IMAGES)["kd"]
    )
    assert list(Distiller(student, None, {"ce": CrossEntropy()})(IMAGES, LABELS)) == ["ce", "loss"]
    average = EMA(student, 0.5)
    distiller = Distiller(student, average, {"kd": SoftTargets()})
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            student.fc.weight.mul_(1.1)  # type: ignore[union-attr, operator]
        optimizer.zero_grad()
        distiller(IMAGES)["loss"].backward()
        optimizer.step()
        average.after_step()
    assert average.updates == 2
    assert all(parameter.grad is None for parameter in average.model.parameters())
    wrapped_student = Tapped(student)
    assert Distiller(wrapped_student, OwnOutputs(wrapped_student), {"kd": SoftTargets()})(IMAGES)["kd"].item() == 0


class TokenClassifier(nn.Module):
    """A token classifier: takes token ids and a mask, returns a mapping with logits per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden_features = self.embed(input_ids)
        for layer in self.layers:
            hidden_features = layer(hidden_features).relu()
        return {"logits": self.head(hidden_features)}


@pytest.mark.parametrize("form", ["dict", "tuple", "tensor"])
def test_token_inputs_by_name_and_by_position(form: str) -> None:
    torch.manual_seed(0)
    student, teacher, tokens = TokenClassifier(4), TokenClassifier(6), torch.randint(9, (3, 7))
    labels = torch.randint(5, (3, 7))
    labels[0, 3:] = -100
    mask = torch.ones(3, 7)
    x = {"dict": {"input_ids": tokens, "attention_mask": mask}, "tuple": (tokens, mask), "tensor": tokens}[form]
    roles = {"stage1": "layers.0", "stage2": "layers.1"}
    terms = {
        "ce": CrossEntropy(),
        "kd": SoftTargets(2.0, ignore_index=-100),
        "at": AttentionTransfer((("stage1", "stage1"),)),
        "hint": Hint("stage2", "stage2", "mean"),
    }
    distiller = Distiller(Tapped(student, roles=roles), Tapped(teacher, roles=roles), terms).build(x)
    losses = distiller(x, labels)
    student_logits, teacher_logits = student(tokens)["logits"], teacher(tokens)["logits"]
    labelled = labels != -100
    kd = soft_targets(student_logits[labelled], teacher_logits[labelled], 2.0).mean()
    torch.testing.assert_close(losses["ce"], F.cross_entropy(student_logits.transpose(1, 2), labels))
    torch.testing.assert_close(losses["kd"], kd)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_losses_under_autocast_are_float32(pair: tuple[nn.Module, nn.Module]) -> None:
    distiller = Distiller(*pair, hinton() | features()).build(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(IMAGES, LABELS)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    losses["loss"].backward()


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(20000 + os.getpid() % 20000))
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_around_the_distiller_and_around_the_student(
    one_process: None, pair: tuple[nn.Module, nn.Module], refused: Any
) -> None:
    student, teacher = pair
    reference = copy.deepcopy(student)
    Distiller(reference, teacher, hinton())(IMAGES, LABELS)["loss"].backward()
    distiller = Distiller(student, teacher, hinton())
    DistributedDataParallel(distiller)(IMAGES, LABELS)["loss"].backward()
    inner = copy.deepcopy(reference)
    inner.zero_grad()
    Distiller(DistributedDataParallel(inner), teacher, hinton())(IMAGES, LABELS)["loss"].backward()
    for network in (student, inner):
        for parameter, expected in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad)
    with refused("no term reads logits", "DistributedDataParallel(distiller)"):
        Distiller(DistributedDataParallel(inner), teacher, {"rkd": DistanceRelations()})


def test_compiled_networks(pair: tuple[nn.Module, nn.Module], refused: Any) -> None:
    student, teacher = pair
    expected = Distiller(copy.deepcopy(student), teacher, hinton())(IMAGES, LABELS)["loss"]
    compiled = torch.compile(copy.deepcopy(student), backend="eager")
    torch.testing.assert_close(Distiller(compiled, teacher, hinton())(IMAGES, LABELS)["loss"], expected)
    with refused("compiled student", "stage1", "tapped.compile()"):
        Distiller(compiled, teacher, features())
    with refused("compiled teacher", "stage1"):
        Distiller(student, torch.compile(teacher, backend="eager"), features())
    expected = Distiller(copy.deepcopy(student), teacher, features() | hinton()).build(IMAGES)
    distiller = Distiller(student, teacher, features() | hinton()).build(IMAGES)
    distiller.terms.load_state_dict(expected.terms.state_dict())
    distiller.student.compile(backend="eager")
    torch.testing.assert_close(distiller(IMAGES, LABELS)["loss"], expected(IMAGES, LABELS)["loss"])


def test_invalid_combinations_are_refused(pair: tuple[nn.Module, nn.Module], tiny_model: Net, refused: Any) -> None:
    student, teacher = pair
    with refused("a term is named 'loss'"):
        Distiller(student, teacher, {"loss": SoftTargets()})
    with refused("view", "fit"):
        Distiller(student, teacher, {"kd": SoftTargets().on(BoundarySamples(Tapped(teacher)))})
    with refused("between", "fit"):
        Distiller(student, teacher, {"kd": SoftTargets().between(None)})
    with refused("Peers", "fit"):
        Distiller(student, Peers(tiny_model(3)), {"kd": SoftTargets()})
    with refused("the student and its teacher have parameters or buffers in common"):
        Distiller(student, student, {"kd": SoftTargets()})
    with refused("Distiller takes networks", "str"):
        Distiller("resnet8", teacher, {"kd": SoftTargets()})  # type: ignore[arg-type]
    with refused("Frozen takes networks", "int"):
        Distiller(student, 3, {"kd": SoftTargets()})  # type: ignore[arg-type]
