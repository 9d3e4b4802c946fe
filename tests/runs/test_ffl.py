"""The method ffl: loss, gradient routing, sub-networks of one or several architectures, and what is deployed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runs.calls import pixels
from tests.runs.test_one import RecordingRun, a_batch, gradients
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.models.load import make_model
from tutelage.models.surgery.heads import Headed
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
from tutelage.runs import execute, open_model
from tutelage.terms.soft_targets import soft_targets
from tutelage.training import Learner, Run, loop
from tutelage.training.learner import ForwardPass, roles_to_read

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)
TWO: dict[str, Any] = {"others": ["wrn-10-1"]}


@pytest.fixture
def any_model(tiny_model: Net) -> Callable[[], Tapped]:
    """A tiny network with random weights."""
    return lambda: tiny_model(int(torch.randint(9999, ())))


@pytest.fixture
def learner(tiny_data: Data, any_model: Callable[[], Tapped]) -> Callable[..., Learner]:
    """``learner(**settings)``: the learner of the method before training."""

    def make(**settings: Any) -> Learner:
        run = RecordingRun(tiny_data, any_model, seed=3)
        run.predict = lambda *_: torch.zeros(len(tiny_data.validation), 16)  # type: ignore[method-assign,arg-type]
        find("ffl")(run, **{"deploy": "fused"} | settings)
        (method_learner,) = run.learners
        return method_learner

    return make


def parts(ffl_learner: Learner) -> tuple[nn.Module, nn.Module, nn.Module, list[nn.Module]]:
    """The fusion, the shared trunk, the last stage of the second sub-network, and the classifiers of both."""
    whole = ffl_learner.model.module
    assert isinstance(whole, Headed)
    first, second = whole.network.get_submodule("branches.0"), whole.network.get_submodule("branches.1")
    last = second.get_submodule("block3" if hasattr(second, "block3") else "conv2")
    return whole.head, first.get_submodule("conv1"), last, [first.get_submodule("fc"), second.get_submodule("fc")]


def loss_terms(ffl_learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """The mean of each term, with gradients, as in a training step."""
    outputs = ffl_learner.model.train().tap(batch.inputs, roles_to_read(ffl_learner, [ffl_learner]))
    assert ffl_learner.source is not None
    teacher = ffl_learner.source(batch, ffl_learner.teacher_roles(), {ffl_learner.model: outputs})
    return {name: w.term(outputs, teacher, batch).mean() for name, w in ffl_learner.terms.items()}


def reached(loss: Tensor, module: nn.Module) -> bool:
    return any(bool(gradient.any()) for gradient in gradients(loss, module))


# --- loss


def test_loss_is_the_sum_of_its_parts(learner: Callable[..., Learner], tiny_data: Data) -> None:
    """Against the equation, written with plain probabilities in float64."""
    ffl_learner, batch = learner(temperature=3.0), a_batch(tiny_data)
    roles = ("branch0", "branch1", "ensemble", "logits")
    outputs = ffl_learner.model.train().tap(batch.inputs, roles)
    z = {role: outputs[role].detach().double() for role in roles}
    torch.testing.assert_close(z["ensemble"], (z["branch0"] + z["branch1"]) / 2, rtol=1e-5, atol=1e-6)

    def kl(student: str, target: str) -> float:
        q, p = (torch.exp(z[role] / 3) / torch.exp(z[role] / 3).sum(1, keepdim=True) for role in (target, student))
        return float(9 * (q * (q / p).log()).sum(1).mean())

    expected = {f"ce {name}": float(F.cross_entropy(z[role], batch.targets)) for name, role in NAMES.items()}
    expected |= {"kd fused": kl("logits", "ensemble"), "kd branch0": kl("branch0", "logits")}
    expected |= {"kd branch1": kl("branch1", "logits")}
    values = {name: float(value.detach()) for name, value in loss_terms(ffl_learner, batch).items()}
    assert values == pytest.approx(expected, abs=1e-5)
    assert ffl_learner.teacher_roles() == ("ensemble", "logits")


NAMES = {"fused": "logits", "branch0": "branch0", "branch1": "branch1"}


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_only_divergences_rise(weight: float, learner: Callable[..., Learner]) -> None:
    terms = learner(weight=weight).terms
    for progress, factor in ((0.0, math.exp(-5)), (40 / 300, math.exp(-1.25)), (80 / 300, 1.0), (0.9, 1.0)):
        for name, weighted in terms.items():
            assert weighted.at(progress) == pytest.approx(weight * factor if name.startswith("kd") else 1.0), name


def test_divergence_is_zero_at_its_target_and_its_gradient_independent_of_temperature() -> None:
    z = torch.randn(5, 4, dtype=torch.float64)
    assert soft_targets(z, z, 3.0).abs().max() < 1e-15
    target = 1e-3 * torch.randn(5, 4, dtype=torch.float64)
    sizes = []
    for temperature in (1.0, 3.0, 10.0):
        student = (1e-3 * z).requires_grad_()
        soft_targets(student, target, temperature).sum().backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-2)


# --- gradient routing


@pytest.mark.parametrize("settings", [{}, TWO], ids=["branches", "architectures"])
def test_ensemble_teaches_fusion_and_fusion_teaches_sub_networks(
    settings: dict[str, Any], learner: Callable[..., Learner], tiny_data: Data
) -> None:
    ffl_learner = learner(**settings)
    fusion, trunk, last, classifiers = parts(ffl_learner)
    terms = loss_terms(ffl_learner, a_batch(tiny_data))
    own_trunk = bool(settings)  # the second sub-network does not use the first one's layers
    for name, term in terms.items():
        of_fusion, of_first, of_second = (name.endswith(end) for end in ("fused", "branch0", "branch1"))
        assert reached(term, fusion) == of_fusion, name
        assert [reached(term, classifier) for classifier in classifiers] == [of_first, of_second], name
        assert reached(term, last) == (of_fusion or of_second), name
        assert reached(term, trunk) == (not (own_trunk and of_second)), name


@pytest.mark.parametrize("settings", [{}, TWO], ids=["branches", "architectures"])
def test_without_weight_gradients_are_those_of_labels_alone(
    settings: dict[str, Any], learner: Callable[..., Learner], tiny_data: Data
) -> None:
    ffl_learner, batch = learner(weight=0.0, **settings), a_batch(tiny_data)
    assert [name for name, weighted in ffl_learner.terms.items() if weighted.is_off] == [
        "kd fused",
        "kd branch0",
        "kd branch1",
    ]
    terms = loss_terms(ffl_learner, batch)
    labels = terms["ce fused"] + terms["ce branch0"] + terms["ce branch1"]
    outputs = ffl_learner.model.tap(batch.inputs, roles_to_read(ffl_learner, [ffl_learner]))
    assert ffl_learner.source is not None
    teacher = ffl_learner.source(batch, ffl_learner.teacher_roles(), {ffl_learner.model: outputs})
    total, _ = ffl_learner.loss({None: ForwardPass(batch, outputs, teacher)}, 0.5)
    module = ffl_learner.model.module
    for one, other in zip(gradients(labels, module), gradients(total, module), strict=True):
        assert torch.equal(one, other)


# --- the network


def test_first_sub_network_is_the_plain_student(
    learner: Callable[..., Learner], tiny_data: Data, any_model: Callable[[], Tapped], changed: Any, state_of: Any
) -> None:
    plain = Run(tiny_data, any_model, seed=3).student()
    for settings in ({}, TWO):
        first = learner(**settings).model.module.get_submodule("network.branches.0")
        assert changed(state_of(first), state_of(plain.module)) == set()


def test_fusion_has_a_tenth_of_the_weight_decay(
    tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    original = loop.make_optimizer

    def watched(*arguments: Any) -> torch.optim.Optimizer:
        optimizers.append(original(*arguments))
        return optimizers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", watched)
        recipe = SHORT.replace(weight_decay=0.01, epochs=1)
        whole = find("ffl")(Run(tiny_data, any_model, recipe=recipe, hardware=on_cpu), deploy="fused")
    (optimizer,) = optimizers
    names = {id(parameter): name for name, parameter in whole.module.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decays) == set(names.values())
    assert {name.startswith("head."): decay for name, decay in decays.items()} == {
        True: pytest.approx(0.001),
        False: 0.01,
    }
    assert len(set(decays.values())) == 2


@pytest.mark.parametrize("settings", [{}, {"branches": 3}, TWO])
def test_training_is_independent_of_deployment(
    settings: dict[str, Any], tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    runs = [Run(tiny_data, any_model, recipe=SHORT, hardware=on_cpu) for _ in range(2)]
    branch, whole = (
        find("ffl")(run, deploy=deploy, **settings) for run, deploy in zip(runs, ("branch", "fused"), strict=True)
    )
    within = whole.eval().tap(pixels(tiny_data), ("logits", "branch0", "branch1", "ensemble"))
    assert torch.equal(branch.eval()(pixels(tiny_data)), within["branch0"])
    assert not torch.allclose(within["logits"], within["branch0"])
    assert list(branch.state_dict()) == list(any_model().state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in branch.modules())
    assert runs[0].notes == runs[1].notes
    count = settings.get("branches", 2)
    noted = runs[0].notes["validation"]
    assert list(noted) == [*(f"branch{k}" for k in range(count)), "ensemble", "fused"]
    history = [run.fits[0].history[-1]["learners"]["student"] for run in runs]
    assert noted["branch0"] == pytest.approx(history[0]["validation_accuracy"])
    assert noted["fused"] == pytest.approx(history[1]["validation_accuracy"])
    assert {**history[0], "validation_accuracy": 0} == {**history[1], "validation_accuracy": 0}


def test_fusion_agrees_with_its_sub_networks_because_of_the_divergences(
    tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    """KL(z_k || z_f) falls with every seed."""
    divergences: dict[float, list[float]] = {0.0: [], 1.0: []}
    for weight, values in divergences.items():
        for seed in range(3):
            run = Run(tiny_data, any_model, recipe=Recipe(epochs=20, batch_size=16), hardware=on_cpu, seed=seed)
            whole = find("ffl")(run, deploy="fused", weight=weight).eval()
            outputs = whole.tap(pixels(tiny_data), ("logits", "branch0", "branch1")).detach()
            fused = outputs["logits"].log_softmax(1)
            logs = [outputs[name].log_softmax(1) for name in ("branch0", "branch1")]
            values.append(float(torch.stack([(p.exp() * (p - fused)).sum(1).mean() for p in logs]).sum()))
    without, with_divergence = divergences.values()
    assert all(one < other for one, other in zip(with_divergence, without, strict=True))
    assert sum(with_divergence) < 0.7 * sum(without)


@pytest.mark.parametrize("settings", [{"branches": 3}, TWO, {"others": ["resnet8x0.25", "mobilenetv2x0.25"]}])
def test_fused_network_can_be_saved_and_opened(
    settings: dict[str, Any], tiny_npz: str, tiny_data: Data, tmp_path: Path
) -> None:
    config = Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="ffl",
        settings={"deploy": "fused", **settings},
        epochs=1,
        batch_size=16,
        device="cpu",
    )
    result = execute(config, tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    operations = [operation["operation"] for operation in read_metadata(file)["surgery"]]
    assert operations == ["beside" if "others" in settings else "branch", "heads"]
    expected, weights = result.model.eval()(pixels(tiny_data)), result.model.module.state_dict()
    for model in (open_model(str(tmp_path / "run"), tiny_data), execute(config, tmp_path / "run").model):
        assert isinstance(model.module, Headed)
        assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
        # Equal weights at other addresses can differ in the last bit of a product.
        torch.testing.assert_close(model.eval()(pixels(tiny_data)), expected, rtol=0, atol=1e-6)


# --- errors


def flat() -> Tapped:
    return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))


def test_networks_without_feature_maps_are_refused(tiny_data: Data, refused: Any) -> None:
    with refused("FFL branches the last stage", "Sequential has 0 stage", "roles="):
        find("ffl")(Run(tiny_data, flat))
    with refused("FFL fuses the last feature maps", "Sequential has none", "roles="):
        find("ffl")(Run(tiny_data, flat), others=["resnet8x0.25"])


@pytest.mark.parametrize(
    ("wrong", "pieces"),
    [
        ({"branches": 1}, ("branches",)),
        ({"temperature": 0}, ("temperature",)),
        ({"ramp": 2}, ("ramp",)),
        ({"deploy": "all"}, ("deploy",)),
        ({"others": ["resnet7"]}, ("depth 7",)),
        ({"others": ["nothing"]}, ("unknown model", "nothing")),
    ],
)
def test_invalid_settings_are_refused(
    wrong: dict[str, Any], pieces: tuple[str, ...], tiny_data: Data, any_model: Callable[[], Tapped], refused: Any
) -> None:
    with refused(*pieces):
        find("ffl")(Run(tiny_data, any_model), **wrong)


def test_built_in_networks_of_a_run_start_like_students_of_their_number(tiny_data: Data, changed: Any) -> None:
    def student() -> Tapped:
        return Tapped(make_model("wrn-10-1", num_classes=4, input_shape=(1, 8, 8)).module, *tiny_data.mean_std)

    run = Run(tiny_data, student, seed=2)
    expected, actual, other = run.student(3), run.network("wrn-10-1", 3), run.network("wrn-10-1", 4)
    assert changed(expected.state_dict(), actual.state_dict()) == set()
    assert changed(actual.state_dict(), other.state_dict())
    assert torch.equal(actual.mean, expected.mean)
