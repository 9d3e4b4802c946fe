"""The method small_data: equal steps, its switches, and the reconstruction loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.conditions import Subset
from tutelage.data.loader import Batches
from tutelage.data.orders import FixedSteps
from tutelage.methods import find
from tutelage.methods.small_data import augmented, static_copies
from tutelage.methods.small_data.reconstruction import Decoder, Reconstruction, reconstruction_error
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

Net = Callable[..., Tapped]
BRIEF = {"steps": 6}


class RecordingRun(Run):
    """A run that records the data, the terms and the layers of its fits."""

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.train_data: Data = options["data"]
        self.learner = learners[0]
        self.dropout = [m for m in learners[0].model.modules() if isinstance(m, nn.Dropout) and m.p]
        return super().fit(*learners, **options)


Make = Callable[..., RecordingRun]


@pytest.fixture
def make(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Make:
    """``make(data=tiny_data, epochs=2, **options)``: a run with batches of 16."""

    def run(data: Data = tiny_data, epochs: int = 2, lr: float = 0.05, **options: Any) -> RecordingRun:
        recipe = Recipe(epochs=epochs, batch_size=16, lr=lr)
        return RecordingRun(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, seed=4, **options)

    return run


def steps_of(run: Run) -> int:
    (fitted,) = run.fits
    return int(sum(record["forward_passes"]["student"] for record in fitted.history)) // 16


# --- samples and steps


def test_draws_are_balanced_nested_and_disjoint_from_test(tiny_data: Data) -> None:
    small, large = (Subset(n, seed=3)(tiny_data) for n in (2, 6))
    assert small.train.labels.bincount().tolist() == [2] * 4
    assert set(small.train.index.tolist()) < set(large.train.index.tolist())
    assert torch.equal(small.train.index, Subset(2, seed=3)(tiny_data).train.index)
    assert not torch.equal(small.train.index, Subset(2, seed=4)(tiny_data).train.index)
    assert small.test is tiny_data.test


@pytest.mark.parametrize("augmentation", ["dynamic", "static", "none"])
@pytest.mark.parametrize("per_class", [4, 12])
def test_steps_do_not_depend_on_samples_and_augmentation(
    augmentation: str, per_class: int, make: Make, tiny_data: Data
) -> None:
    run = make(Subset(per_class)(tiny_data), epochs=3)
    find("small_data")(run, steps=11, augmentation=augmentation, copies=3)
    assert steps_of(run) == 12  # rounded up to a multiple of three epochs


def test_no_sample_is_left_out_of_fixed_steps(tiny_data: Data) -> None:
    order = FixedSteps(7)(torch.zeros(10), 4, torch.Generator().manual_seed(0))
    assert order.shape == (7, 4)
    passes = order.flatten()[:20].view(2, 10)
    assert all(sorted(one.tolist()) == list(range(10)) for one in passes)
    assert not torch.equal(passes[0], passes[1])


# --- the switches


def test_without_switches_it_is_plain_training(make: Make, state_of: Any, changed: Any) -> None:
    run = make()
    state = state_of(find("small_data")(run))
    assert list(run.learner.terms) == ["ce"]
    assert run.dropout == []
    plain = make()
    student = plain.student()
    Run.fit(plain, Learner(student, None, {"ce": CrossEntropy()}))
    assert changed(state, state_of(student)) == set()


def test_each_switch_changes_training(make: Make, state_of: Any, changed: Any) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"dropout": 0.5},
        {"augmentation": "static"},
        {"augmentation": "static", "copies": 2},
        {"augmentation": "none"},
        {"reconstruct": 1.0},
        {"reconstruct": 10.0},
    ]
    states = [state_of(find("small_data")(make(lr=0.005), steps=6, **entry)) for entry in settings]
    for number, state in enumerate(states):
        assert all(changed(state, other) for other in states[:number])


def pixels(data: Data, epoch: int) -> set[str]:
    """Hashes of all images of an epoch of the training split."""
    batches = Batches(data.train, batch_size=16, views=data.views, seed=1)
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for b in batches.epoch(epoch) for image in b.inputs}


def test_static_augmentation_is_a_fixed_set_and_dynamic_is_not(tiny_data: Data) -> None:
    static, dynamic, none = (augmented(tiny_data, name, 5, 3) for name in ("static", "dynamic", "none"))  # type: ignore[arg-type]
    assert len(static.train) == 5 * 48
    assert pixels(static, 0) == pixels(static, 1)
    assert pixels(none, 0) == pixels(none, 1) == pixels(replace(tiny_data, views=none.views), 0)
    assert pixels(dynamic, 0) != pixels(dynamic, 1)
    assert dynamic is tiny_data


def test_static_copies_are_views_of_their_sample_with_its_label(tiny_data: Data) -> None:
    train = tiny_data.train
    copies, repeated, other = (static_copies(train, tiny_data.views, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(copies.index, train.index.repeat_interleave(5))
    assert torch.equal(copies.labels, train.labels.repeat_interleave(5))
    assert isinstance(copies.inputs, Tensor)
    assert isinstance(train.inputs, Tensor)
    for number in (0, 17, 239):
        every = torch.arange(tiny_data.views.count)
        sample = train.inputs[number // 5].expand(len(every), -1, -1, -1)
        assert any(torch.equal(view, copies.inputs[number]) for view in tiny_data.views(sample, every))
    assert torch.equal(copies.inputs, repeated.inputs)  # type: ignore[arg-type]
    assert not torch.equal(copies.inputs, other.inputs)  # type: ignore[arg-type]


def test_dropout_acts_in_training_only_and_is_removed(make: Make, state_of: Any) -> None:
    run = make()
    keys = state_of(run.student()).keys()
    student = find("small_data")(run, steps=4, dropout=0.5)
    (layer,) = run.dropout
    assert layer.p == 0.5
    assert not any(module is layer for module in student.modules())
    assert state_of(student).keys() == keys
    inputs = torch.rand(3, 1, 8, 8)
    assert torch.equal(student.train()(inputs), student.train()(inputs))


def test_dropout_is_before_the_classifier(make: Make) -> None:
    run = make()
    values: list[Tensor] = []
    fit = run.fit

    def watched(*learners: Learner, **options: Any) -> FitResult:
        learners[0].model.module.fc.register_forward_hook(lambda _m, inputs, _o: values.append(inputs[0].detach()))
        return fit(*learners, **options)

    run.fit = watched  # type: ignore[method-assign]
    find("small_data")(run, steps=8, dropout=0.9)
    in_training = [value for value in values if len(value) == 16 and float((value == 0).float().mean()) > 0.5]
    assert len(in_training) == 8


# --- reconstruction


def test_error_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    expected = [
        sum(
            (float(one[b, c, h, w]) - float(other[b, c, h, w])) ** 2
            for c in range(2)
            for h in range(4)
            for w in range(5)
        )
        / 40
        for b in range(3)
    ]
    torch.testing.assert_close(reconstruction_error(one, other), torch.tensor(expected, dtype=torch.float64))
    assert not reconstruction_error(one, one).any()
    assert torch.equal(reconstruction_error(one, one + 0.5), torch.full((3,), 0.25, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: reconstruction_error(x, other), one.requires_grad_())
    moved = other.clone().requires_grad_()
    reconstruction_error(one, moved).sum().backward()
    assert moved.grad is None


@pytest.mark.parametrize(
    ("features", "image"),
    [((64, 1, 1), (1, 8, 8)), ((64, 3, 3), (1, 28, 28)), ((5, 4, 4), (3, 32, 20)), ((6, 8, 8), (1, 8, 8))],
)
def test_decoder_returns_images(features: tuple[int, int, int], image: tuple[int, int, int]) -> None:
    assert Decoder(features, image)(torch.rand(2, *features)).shape == (2, *image)


def test_decoder_gets_no_gradient_from_cross_entropy(tiny_data: Data, tiny_model: Net, batch_of: Any) -> None:
    model = tiny_model()
    term = Reconstruction("stage2", (1, 8, 8))
    batch = replace(batch_of(torch.arange(4)), inputs=torch.rand(4, 1, 8, 8))
    outputs = model.tap(batch.inputs, ("logits", "stage2"))
    term.build(outputs, None)
    assert term.decoder is not None
    decoder, encoder = list(term.decoder.parameters()), list(model.parameters())
    loss = F.cross_entropy(outputs["logits"], batch.targets)
    assert all(g is None for g in torch.autograd.grad(loss, decoder, retain_graph=True, allow_unused=True))
    value = term(outputs, None, batch)
    assert value.shape == (4,)
    assert all(g.any() for g in torch.autograd.grad(value.sum(), decoder, retain_graph=True))
    reached = torch.autograd.grad(value.sum(), encoder, allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    assert {name for name, g in zip(names, reached, strict=True) if g is None} == {"module.fc.weight", "module.fc.bias"}


def test_decoder_learns_and_is_not_saved(make: Make, state_of: Any) -> None:
    run = make(epochs=20)
    keys = state_of(run.student()).keys()
    student = find("small_data")(run, steps=200, reconstruct=1.0, augmentation="none")
    errors = [record["learners"]["student"]["reconstruction"] for record in run.fits[0].history]
    assert errors[-1] < 0.5 * errors[0]
    assert state_of(student).keys() == keys


def test_features_without_a_map_are_refused(make: Make, tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    def mlp() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))

    run = Run(tiny_data, mlp, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    with refused("no feature maps", "reconstruct=0"):
        find("small_data")(run, steps=2, reconstruct=1.0)
    term = Reconstruction("stage1", (1, 8, 8))
    with refused("(1, 8, 8)", "stage1", "(17, 8)"):
        term.build(Outputs(None, {"stage1": torch.zeros(2, 17, 8)}), None)


class StoppedError(Exception):
    pass


def test_resume_with_all_switches_is_exact(make: Make, tmp_path: Path, state_of: Any, changed: Any) -> None:
    settings = {"steps": 8, "dropout": 0.3, "augmentation": "static", "copies": 2, "reconstruct": 1.0}

    def stopping(record: Any) -> None:
        if record["epoch"] == 1:
            raise StoppedError

    student = find("small_data")(make(), **settings)
    with pytest.raises(StoppedError):
        find("small_data")(make(folder=tmp_path, report=stopping), **settings)
    assert changed(state_of(student), state_of(find("small_data")(make(folder=tmp_path), **settings))) == set()


def test_student_learns_the_classes(make: Make) -> None:
    run = make(epochs=2, lr=0.1)
    student = find("small_data")(run, steps=120, dropout=0.2)
    predictions = run.predict(student, run.data.test).argmax(1)
    assert float((predictions == run.data.test.labels).double().mean()) > 0.8
