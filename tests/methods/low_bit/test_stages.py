"""The parts of low_bit: few samples, stored features, blocks, losses of both stages, epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.methods.low_bit import few_samples, stage_epochs
from tutelage.methods.low_bit.features import (
    BLOCK,
    Activations,
    StoredOutputs,
    activations_data,
    block_features,
    relative_error,
)
from tutelage.methods.low_bit.stages import Stages, block_learner, feature_error, scale_options, whole, without_norms
from tutelage.models.outputs import Outputs
from tutelage.models.quantised import quantised_layers
from tutelage.models.surgery.fold import apply as fold_norms
from tutelage.models.surgery.quantise import apply as quantise
from tutelage.models.tapped import Tapped
from tutelage.training import Run

Net = Callable[..., Tapped]
BLOCKS = ["conv1", "conv2", "fc"]


@pytest.fixture
def run(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Run:
    recipe = Recipe(epochs=1, batch_size=8, lr=0.01, weight_decay=0.0)
    return Run(replace(tiny_data, views=CropsAndFlips()), lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, seed=3)


@pytest.fixture
def reference(trained_model: Net) -> Tapped:
    """A trained network with folded norms."""
    model = trained_model()
    fold_norms(model.module, torch.rand(2, 1, 8, 8))
    return model.rewrapped().eval()


def stages(run: Run, reference: Tapped, bits: int = 2) -> Stages:
    student = copy.deepcopy(reference)
    quantise(student.module, torch.rand(2, 1, 8, 8), bits=bits, groups=2)
    return Stages(run, few_samples(run, 4), student.rewrapped(), reference, steps=2, scale_factor=1.0)


def test_samples_of_each_class(run: Run, tiny_data: Data, on_cpu: Hardware, tiny_model: Net) -> None:
    few = few_samples(run, 3)
    assert few.labels.bincount().tolist() == [3, 3, 3, 3]
    assert set(few_samples(run, 2).index.tolist()) < set(few.index.tolist())
    assert torch.equal(few.index, few_samples(run, 3).index)
    other = Run(run.data, lambda: tiny_model(2), hardware=on_cpu, seed=4)
    assert not torch.equal(few.index, few_samples(other, 3).index)
    assert few_samples(run, 0) is run.data.train
    assert len(few_samples(run, 100)) == 48
    unlabelled = replace(tiny_data.train, labels=torch.full((48,), -1))
    without = Run(replace(tiny_data, train=unlabelled), lambda: tiny_model(2), hardware=on_cpu, seed=3)
    assert len(few_samples(without, 2)) == 2 * 4
    partly = replace(tiny_data.train, labels=tiny_data.train.labels.where(torch.arange(48) < 24, -1))
    mixed = few_samples(Run(replace(tiny_data, train=partly), lambda: tiny_model(2), hardware=on_cpu, seed=3), 2)
    assert mixed.labels.bincount().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(10, 0.4, (4, 6)), (10, 0.0, (0, 10)), (10, 1.0, (10, 0)), (1, 0.4, (1, 1)), (2, 0.9, (1, 1)), (5, 0.01, (1, 4))],
)
def test_epochs_of_the_stages(epochs: int, share: float, expected: tuple[int, int]) -> None:
    assert stage_epochs(epochs, share) == expected


def test_stored_features_are_those_of_a_pass(run: Run, reference: Tapped) -> None:
    few = few_samples(run, 3)
    stored = block_features(run, reference, few, BLOCKS)
    pixels = (few.inputs.permute(0, 3, 1, 2) / 255 - reference.mean) / reference.std  # type: ignore[union-attr]
    module = reference.module
    with torch.no_grad():
        first = module.conv1(pixels)  # type: ignore[operator]
        second = module.conv2(first.relu())  # type: ignore[operator]
        embedding = second.relu().mean((2, 3))
    assert list(stored) == BLOCKS
    for name, (inputs, outputs) in {
        "conv1": (pixels, first),
        "conv2": (first.relu(), second),
        "fc": (embedding, module.fc(embedding).detach()),  # type: ignore[operator]
    }.items():
        torch.testing.assert_close(stored[name][0], inputs)
        torch.testing.assert_close(stored[name][1], outputs)
        assert not stored[name][0].is_inference()
    assert not module._forward_hooks
    assert not module.conv1._forward_pre_hooks  # type: ignore[union-attr]


def test_features_as_data_and_source(run: Run) -> None:
    inputs, outputs = torch.randn(9, 2, 3, 3), torch.randn(9, 5)
    data = activations_data(run.data, inputs)
    assert data.modality == Activations()
    assert data.input_shape == (2, 3, 3)
    batch = next(Batches(data.train, batch_size=4, views=data.views, seed=0).epoch(0))
    assert torch.equal(batch.inputs, inputs[batch.index])
    assert torch.equal(StoredOutputs(outputs)(batch)[BLOCK], outputs[batch.index])


def test_relative_error() -> None:
    torch.manual_seed(0)
    block, x, y = nn.Linear(3, 2).double(), torch.randn(300, 3).double(), torch.randn(300, 2).double()
    expected = float(((block(x) - y) ** 2).sum().detach() / (y**2).sum())
    assert relative_error(block, x, y) == pytest.approx(expected, rel=1e-9)
    assert relative_error(block, x, 0 * y) > 0
    assert relative_error(block, x, block(x).detach()) < 1e-20


def test_loss_of_a_block_is_a_mean_of_squares() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(4, 3, 2, 2, requires_grad=True)
    term, batch = feature_error(BLOCK), Batch(torch.zeros(4, 1), torch.zeros(4).long(), torch.arange(4), None)
    outputs = [Outputs(None, {BLOCK: value}) for value in (student, teacher)]
    term.build(*outputs)
    value = term(*outputs, batch)
    pairs = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    expected = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) / 12 for pair in pairs]
    torch.testing.assert_close(value.detach(), torch.tensor(expected))
    value.sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_first_losses_without_quantisation_are_zero(run: Run, reference: Tapped) -> None:
    """Both stages of an unquantised copy of the reference."""
    student, few = copy.deepcopy(reference), few_samples(run, 4)
    stored = block_features(run, reference, few, BLOCKS)
    slow = {"epochs": 1, "lr": 1e-20, "optimizer": "SGD"}
    for name in BLOCKS:
        learner = block_learner(student.module.get_submodule(name), stored[name][1], 1.0)
        fitted = run.fit(learner, data=activations_data(run.data, stored[name][0]), **slow)
        assert fitted.history[0]["learners"][BLOCK][BLOCK] < 1e-12
    roles = {f"block{number}": name for number, name in enumerate(BLOCKS)}
    terms = {role: 1.0 * feature_error(role) for role in roles}
    parts = {"scale_factor": 1.0, "beta": 1.0, "temperature": 2.0, "label_weight": 0.0}
    learner = whole(
        student.with_roles(roles), run.frozen(reference.with_roles(roles)), terms, frozen_norms=True, **parts
    )
    fitted = run.fit(learner, data=replace(run.data, train=few), **slow)
    assert all(fitted.history[0]["learners"]["student"][name] < 1e-10 for name in (*roles, "kd"))


def test_first_stage_lowers_the_error_of_each_block_alone(run: Run, reference: Tapped, state_of: Any) -> None:
    both = stages(run, reference)
    assert both.blocks == BLOCKS
    before = state_of(both.student)
    both.fit_blocks(40, 3e-3, "float")
    errors = run.notes["block_errors"]
    assert list(errors) == BLOCKS
    assert errors["conv2"][1] < errors["conv2"][0] / 2
    after = state_of(both.student)
    assert not torch.equal(before["module.conv2.weight"], after["module.conv2.weight"])
    for name, (first, last) in errors.items():
        assert last < first or torch.equal(before[f"module.{name}.weight"], after[f"module.{name}.weight"])
    assert [len(fitted.history) for fitted in run.fits] == [40] * 3
    assert "validation_accuracy" not in run.fits[0].history[0]["learners"][BLOCK]


def test_inputs_of_the_quantised_network(run: Run, reference: Tapped) -> None:
    """The first error of a block includes those of the blocks before it."""
    errors = {}
    for inputs in ("float", "quantised"):
        stages(run, reference).fit_blocks(1, 1e-9, inputs)  # type: ignore[arg-type]
        errors[inputs] = {name: before for name, (before, _) in run.notes["block_errors"].items()}
    assert errors["float"]["conv1"] == errors["quantised"]["conv1"]
    assert errors["quantised"]["fc"] > 10 * errors["float"]["fc"]


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_loss_of_the_second_stage(alpha: float, run: Run, reference: Tapped) -> None:
    both = stages(run, reference)
    original, few = copy.deepcopy(both.student), both.few
    student = both.fit_whole(1, 1e-30, alpha=alpha, beta=0.5, temperature=2.0, label_weight=0.25)
    entry = run.fits[0].history[0]["learners"]["student"]
    stored = [block_features(run, model, few, BLOCKS) for model in (original, reference)]
    logits, target = (features["fc"][1] for features in stored)
    log_p, log_q = (value.div(2).log_softmax(1) for value in (logits, target))
    assert entry["kd"] == pytest.approx(float(4 * (log_q.exp() * (log_q - log_p)).sum(1).mean()), rel=1e-3)
    assert entry["ce"] == pytest.approx(float(F.cross_entropy(logits, few.labels)), rel=1e-3)
    assert ("block1" in entry) == (alpha > 0)
    if alpha:
        for number, name in enumerate(BLOCKS, 1):
            difference = stored[0][name][1] - stored[1][name][1]
            assert entry[f"block{number}"] == pytest.approx(float(difference.square().mean()), rel=1e-3)
        assert {"block1", "block2", "block3"} <= set(student.taps)


def test_a_loss_without_terms_is_refused(run: Run, reference: Tapped, refused: Any) -> None:
    with refused("alpha, beta and label_weight are 0"):
        stages(run, reference).fit_whole(1, 1e-3, alpha=0.0, beta=0.0, temperature=1.0, label_weight=0.0)


def test_norms_are_frozen_and_scales_have_their_rate(tiny_model: Net) -> None:
    module = tiny_model().module
    assert [name for name, _ in module.named_parameters() if not without_norms(module)(name)] == [
        "bn1.weight",
        "bn1.bias",
        "bn2.weight",
        "bn2.bias",
    ]
    assert not without_norms(nn.BatchNorm2d(3))("weight")
    chosen = scale_options(0.1)
    assert chosen("conv1.weight") is None
    for name in ("conv1.weight_gain", "input_gain"):
        option = chosen(name)
        assert option is not None
        assert (option.lr, option.weight_decay) == (0.1, 0.0)


def test_a_network_of_one_block_is_optimised_as_a_whole(tiny_data: Data, on_cpu: Hardware) -> None:
    """A skip from the input to the end leaves nothing to cut."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.out(x + self.hidden(x).relu()) + x[:, :4]  # type: ignore[no-any-return]

    torch.manual_seed(0)
    run = Run(tiny_data, lambda: Tapped(Skip()), recipe=Recipe(epochs=1, batch_size=8), hardware=on_cpu)
    both = stages(run, Tapped(Skip()).eval(), bits=3)
    assert both.blocks == [""]
    before = copy.deepcopy(both.student.module.state_dict())
    both.fit_blocks(5, 1e-3, "float")
    first, last = run.notes["block_errors"][""]
    assert first == last < 1e-4  # two layers of 8 bits, nearly exact before
    assert all(torch.equal(value, before[key]) for key, value in both.student.module.state_dict().items())
    both.fit_whole(1, 1e-3, alpha=1.0, beta=1.0, temperature=1.0, label_weight=0.0)
    assert len(quantised_layers(both.student.module)) == 2
