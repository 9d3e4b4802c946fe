"""The method one: loss, gate, and training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.calls import Net, pixels
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.surgery.branch import Branched
from tutelage.models.tapped import Tapped
from tutelage.terms import View
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.learner import ForwardPass
from tutelage.training.ramp import sigmoid_ramp_up

SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


class RecordingRun(Run):
    """A run that records its learners instead of training them."""

    learners: tuple[Learner, ...] = ()

    def fit(self, *learners: Learner, **_: Any) -> FitResult:
        self.learners = learners
        return FitResult((), {})


@pytest.fixture
def any_model(tiny_model: Net) -> Callable[[], Tapped]:
    """A tiny network with random weights."""
    return lambda: tiny_model(int(torch.randint(9999, ())))


@pytest.fixture
def learner(tiny_data: Data, any_model: Callable[[], Tapped]) -> Callable[..., Learner]:
    """``learner(**settings)``: the learner of the method before training."""

    def make(**settings: Any) -> Learner:
        run = RecordingRun(tiny_data, any_model, seed=3)
        find("one")(run, **{"deploy": "ensemble"} | settings)
        (method_learner,) = run.learners
        return method_learner

    return make


def a_batch(data: Data, size: int = 16) -> Batch:
    assert isinstance(data.train.inputs, Tensor)
    index = torch.arange(size)
    return Batch(data.train.inputs[:size].permute(0, 3, 1, 2) / 255, data.train.labels[:size], index, None)


# --- the loss


@pytest.mark.parametrize(("progress", "total"), [(0.5, 4.622162), (0.0, 3.64015 + 0.006738 * 0.982012)])
def test_closed_form_of_loss(progress: float, total: float, learner: Callable[..., Learner]) -> None:
    """z_0 = (2, 0), z_1 = (0, 2), z_2 = (1, 1), equal gates, y = 0, T = 3."""
    one_learner = learner()
    z = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    outputs = Outputs(z.mean(0)[None], {f"branch{i}": z[i][None] for i in range(3)})
    zero = torch.zeros(1).long()
    passes: dict[View | None, ForwardPass] = {
        None: ForwardPass(Batch(torch.zeros(1, 1, 8, 8), zero, zero, None), outputs, outputs)
    }
    loss, values = one_learner.loss(passes, progress)
    assert dict(zip(one_learner.terms, values.tolist(), strict=True)) == pytest.approx(
        {
            "ensemble": 0.693147,
            "ce branch0": 0.126928,
            "ce branch1": 2.126928,
            "ce branch2": 0.693147,
            "kd branch0": 0.491006,
            "kd branch1": 0.491006,
            "kd branch2": 0.0,
        },
        abs=1e-6,
    )
    assert loss.item() == pytest.approx(total, abs=2e-6)


@pytest.mark.parametrize(
    ("epoch", "weight"),
    [(0, 0.006738), (20, 0.060055), (40, 0.286505), (60, 0.731616), (80, 1.0), (81, 1.0), (299, 1.0)],
)
def test_ramp_values(epoch: int, weight: float, learner: Callable[..., Learner]) -> None:
    assert sigmoid_ramp_up(epoch / 300, 80 / 300) == pytest.approx(weight, abs=1e-6)
    terms = learner().terms
    for name, weighted in terms.items():
        assert weighted.at(epoch / 300) == pytest.approx(weight if name.startswith("kd") else 1.0, abs=1e-6)


def test_without_ramp_divergence_has_full_weight(learner: Callable[..., Learner]) -> None:
    assert sigmoid_ramp_up(0.0, 0.0) == 1
    assert learner(ramp=0).terms["kd branch1"].at(0.0) == 1
    assert learner(ramp=1).terms["kd branch1"].at(0.5) == pytest.approx(math.exp(-1.25))


def loss_terms(one_learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """The mean of each term, with gradients, as in a training step."""
    outputs = one_learner.model.train().tap(batch.inputs, one_learner.roles())
    assert one_learner.source is not None
    teacher_outputs = one_learner.source(batch, one_learner.teacher_roles(), {one_learner.model: outputs})
    return {name: w.term(outputs, teacher_outputs, batch).mean() for name, w in one_learner.terms.items()}


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = list(module.parameters())
    values = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, values, strict=True)]


def test_gate_gets_gradient_from_ensemble_labels_only(learner: Callable[..., Learner], tiny_data: Data) -> None:
    one_learner = learner()
    network = one_learner.model.module
    assert isinstance(network, Branched)
    parts = loss_terms(one_learner, a_batch(tiny_data))
    for name, part in parts.items():
        has_gradient = any(bool(gradient.any()) for gradient in gradients(part, network.gate))
        assert has_gradient == (name == "ensemble"), name
    assert all(p.requires_grad for p in network.gate.parameters())


def test_branch_terms_reach_branch_and_trunk_only(learner: Callable[..., Learner], tiny_data: Data) -> None:
    one_learner = learner()
    network = one_learner.model.module
    parts = loss_terms(one_learner, a_batch(tiny_data))
    heads = [network.get_submodule(f"branches.{n}.fc") for n in range(3)]
    trunk = network.get_submodule("branches.0.conv1")
    for name, part in parts.items():
        has_gradients = [any(bool(gradient.any()) for gradient in gradients(part, head)) for head in heads]
        assert has_gradients == [name in ("ensemble", f"ce branch{n}", f"kd branch{n}") for n in range(3)], name
        assert gradients(part, trunk)[0].any(), name


def test_all_parameters_are_trained_once(learner: Callable[..., Learner]) -> None:
    one_learner = learner()
    network = one_learner.model.module
    parameters = list(one_learner.parameters())
    assert len({id(p) for p in parameters}) == len(parameters)
    assert {id(p) for p in parameters} == {id(p) for p in network.parameters()}
    names = {name for name, _ in network.named_parameters()}
    assert "gate.linear.weight" in names
    assert "gate.norm.bias" in names
    assert "branches.2.fc.weight" in names
    assert "branches.0.conv1.weight" in names
    assert "branches.1.conv1.weight" not in names


# --- initial state


def test_first_branch_starts_as_plain_student(
    learner: Callable[..., Learner], tiny_data: Data, any_model: Callable[[], Tapped], changed: Any, state_of: Any
) -> None:
    one_learner, plain = learner(), Run(tiny_data, any_model, seed=3).student()
    first = one_learner.model.module.get_submodule("branches.0")
    assert changed(state_of(first), state_of(plain.module)) == set()
    images = pixels(tiny_data)
    for training in (False, True):
        outputs = one_learner.model.train(training).tap(images, one_learner.roles())
        assert torch.equal(outputs["branch0"], plain.train(training)(images))
        branches = [outputs[f"branch{n}"] for n in range(3)]
        assert not any(torch.allclose(a, b) for a, b in itertools.combinations(branches, 2))


@pytest.mark.parametrize("branches", [2, 5])
def test_number_of_branches(branches: int, learner: Callable[..., Learner]) -> None:
    one_learner = learner(branches=branches)
    network = one_learner.model.module
    assert isinstance(network, Branched)
    assert len(network.branches) == network.gate.linear.out_features == branches
    assert len(one_learner.terms) == 1 + 2 * branches


def test_the_last_stage_is_branched(learner: Callable[..., Learner], tiny_data: Data) -> None:
    network = learner().model.module
    assert isinstance(network, Branched)
    assert network.at == "bn1"
    from tutelage.models.load import make_model

    run = RecordingRun(
        tiny_data, lambda: Tapped(make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module)
    )
    find("one")(run)
    network = run.learners[0].model.module
    assert isinstance(network, Branched)
    assert network.at == "layer2"


# --- training


def test_returned_branch_is_a_plain_network(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> None:
    run = Run(tiny_data, any_model, recipe=Recipe(epochs=8, batch_size=16, lr=0.1), hardware=on_cpu, seed=3)
    fitted_learners: list[Learner] = []
    fit = run.fit

    def recording_fit(*learners: Learner, **changes: Any) -> FitResult:
        fitted_learners.extend(learners)
        return fit(*learners, **changes)

    run.fit = recording_fit  # type: ignore[method-assign]
    student = find("one")(run)
    plain = any_model()
    assert type(student.module) is type(plain.module)
    assert list(student.state_dict()) == list(plain.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    (one_learner,) = fitted_learners
    assert student is one_learner.deployed
    assert student.module is one_learner.model.module.get_submodule("branches.0")
    history = [record["learners"]["student"] for record in run.fits[0].history]
    assert history[-1]["ensemble"] < history[0]["ensemble"]
    assert history[-1]["ce branch2"] < history[0]["ce branch2"]
    from tutelage.evaluation.metrics import accuracy
    from tutelage.evaluation.predict import predict

    assert tiny_data.validation is not None
    expected_accuracy = float(
        accuracy(predict(student, tiny_data.validation, device="cpu"), tiny_data.validation.labels)
    )
    assert history[-1]["validation_accuracy"] == expected_accuracy
    assert list(run.selected) == [student]
    assert list(run.selected[student].state) == list(plain.module.state_dict())


def test_statistics_are_updated_once_per_batch(
    tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    run = Run(tiny_data, any_model, recipe=SHORT, hardware=on_cpu)
    state = find("one")(run, deploy="ensemble").module.state_dict()
    counts = {name: int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counts == dict.fromkeys(
        [f"branches.{n}.bn2.num_batches_tracked" for n in range(3)]
        + ["branches.0.bn1.num_batches_tracked", "gate.norm.num_batches_tracked"],
        6,
    )


def test_training_is_independent_of_deployment(
    tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    branch, ensemble = (
        find("one")(Run(tiny_data, any_model, recipe=SHORT, hardware=on_cpu), deploy=deploy)
        for deploy in ("branch", "ensemble")
    )
    within = ensemble.eval().tap(pixels(tiny_data), ("logits", "branch0", "branch1"))
    assert torch.equal(branch.eval()(pixels(tiny_data)), within["branch0"])
    assert not torch.allclose(within["logits"], within["branch0"])


# --- errors


def test_a_batch_of_one_is_refused(tiny_data: Data, any_model: Callable[[], Tapped], refused: Any) -> None:
    with refused("normalises over the batch", "batch size of 2 or more"):
        find("one")(Run(tiny_data, any_model, recipe=Recipe(batch_size=1)))


class Flat(nn.Module):
    """A network of one resolution and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: Tapped(Flat()), ("branches the last stage", "Flat has 1 stage", "roles=")),
        (
            lambda: Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))),
            ("branches the last stage", "Sequential has 0 stage", "roles="),
        ),
        (
            lambda: Tapped(Flat(), roles={"stage1": "input:conv", "stage2": "conv"}),
            ("input:conv", "name that layer by its output"),
        ),
    ],
)
def test_unbranchable_networks_are_refused(
    make: Callable[[], Tapped], pieces: tuple[str, ...], tiny_data: Data, refused: Any
) -> None:
    with refused(*pieces):
        find("one")(Run(tiny_data, make))


@pytest.mark.parametrize(
    "invalid_settings", [{"branches": 1}, {"branches": 65}, {"temperature": 0}, {"ramp": 1.5}, {"deploy": "all"}]
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], tiny_data: Data, any_model: Callable[[], Tapped], refused: Any
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("one")(Run(tiny_data, any_model), **invalid_settings)
