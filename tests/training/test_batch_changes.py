"""Mixtures, smoothed labels, weights of classes, and batches in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.data.mixing import Box, Mixing, blended, draw_box, pasted, soft_labels
from tutelage.data.orders import LabelledFirst, class_balanced
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen, Peers
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.on_role import OnRole
from tutelage.training import Learner, Run, fit, in_turn
from tutelage.training.batch_changes import BatchChanges, class_weights
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]
CE = {"ce": CrossEntropy()}


def batch_of(targets: Tensor, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(len(targets), 2, 6, 4, generator=generator)
    return Batch(inputs, targets, torch.arange(len(targets)), torch.zeros(len(targets), 2, dtype=torch.int64))


# --- mixtures


def test_soft_labels_are_one_hot_and_zero_without_a_label() -> None:
    assert soft_labels(torch.tensor([2, -1, 0]), 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    soft = torch.rand(2, 3)
    assert soft_labels(soft, 3) is soft


def test_blended_samples_and_labels_are_convex_combinations() -> None:
    batch = batch_of(soft_labels(torch.tensor([0, 1, 2]), 3))
    partners = torch.tensor([1, 2, 0])
    mixed = blended(replace(batch, second=2 * batch.inputs), 0.75, partners)
    for number, partner in enumerate(partners.tolist()):
        expected = 0.75 * batch.inputs[number] + 0.25 * batch.inputs[partner]
        torch.testing.assert_close(mixed.inputs[number], expected)
        assert mixed.second is not None
        torch.testing.assert_close(mixed.second[number], 2 * expected)
        assert mixed.targets[number, number] == 0.75
        assert mixed.targets[number, partner] == 0.25


def test_pasted_boxes_and_their_area_in_the_label() -> None:
    batch = batch_of(soft_labels(torch.tensor([0, 1]), 2))
    mixed = pasted(batch, Box(1, 4, 2, 4), torch.tensor([1, 0]))
    inside = torch.zeros(6, 4, dtype=torch.bool)
    inside[1:4, 2:4] = True
    assert torch.equal(mixed.inputs[0][:, inside], batch.inputs[1][:, inside])
    assert torch.equal(mixed.inputs[0][:, ~inside], batch.inputs[0][:, ~inside])
    assert mixed.targets[0].tolist() == pytest.approx([1 - 6 / 24, 6 / 24])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_boxes_have_the_drawn_area_unless_the_border_cuts_them(share: float) -> None:
    generator = np.random.default_rng(0)
    areas = set()
    for _ in range(200):
        top, bottom, left, right = draw_box(share, 10, 20, generator)
        assert 0 <= top <= bottom <= 10
        assert 0 <= left <= right <= 20
        areas.add((bottom - top) * (right - left))
    side = (1 - share) ** 0.5
    expected = int(10 * side) * int(20 * side)
    assert max(areas) == expected if share >= 0.3 else 0.3 * expected < max(areas) <= expected


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, None), (None, 1.0), (0.4, 1.0)])
def test_draws_depend_on_seed_and_step_alone(mixup: float | None, cutmix: float | None) -> None:
    batch = batch_of(soft_labels(torch.arange(8) % 3, 3))
    mixing = Mixing(mixup, cutmix, seed=3)
    first = mixing(batch, 5)
    torch.manual_seed(99)
    assert torch.equal(mixing(batch, 5).inputs, first.inputs)
    assert not torch.equal(mixing(batch, 6).inputs, first.inputs)
    assert not torch.equal(Mixing(mixup, cutmix, seed=4)(batch, 5).inputs, first.inputs)
    assert first.key is None
    torch.testing.assert_close(first.targets.sum(1), torch.ones(8))


def test_shares_follow_the_beta_distribution_and_both_kinds_alternate() -> None:
    batch = batch_of(soft_labels(torch.tensor([0, 1]), 2))
    shares = [float(Mixing(0.5, None, seed=0)(batch, step).targets.max(1).values.max()) for step in range(400)]
    draws = np.random.default_rng(1).beta(0.5, 0.5, 20_000)
    reference = np.maximum(draws, 1 - draws)
    mixed = [share for share in shares if share < 1]  # a permutation of two is the identity half of the time
    assert np.mean(mixed) == pytest.approx(reference.mean(), abs=0.03)
    both = [Mixing(1.0, 1.0, seed=0)(batch, step).inputs for step in range(200)]
    original = [any(torch.equal(image[:, 0, 0], other[:, 0, 0]) for other in batch.inputs) for image in torch.cat(both)]
    assert 0.5 < np.mean(original) < 0.95


# --- labels


def test_smoothed_cross_entropy_equals_its_closed_form() -> None:
    targets = torch.tensor([2, 0, -1])
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = BatchChanges(4, smoothing=0.1)(batch_of(targets), 0)
    value = cross_entropy(logits, changed.targets.double())
    expected = F.cross_entropy(logits[:2], targets[:2], label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(value[:2], expected, rtol=1e-6, atol=1e-6)
    assert value[2] == 0


def test_class_weights_have_mean_one_over_the_samples(tiny_data: Data) -> None:
    rare = replace(tiny_data, train=tiny_data.train.subset(torch.tensor([0, 4, 8, 12, 1, 5, 2, 3])))  # 4, 2, 1, 1
    balanced = class_weights("balanced", rare)
    torch.testing.assert_close(balanced, torch.tensor([0.5, 1.0, 2.0, 2.0]))
    given = class_weights((1, 1, 1, 5), rare)
    torch.testing.assert_close(given, torch.tensor([1.0, 1.0, 1.0, 5.0]) * 8 / 12)
    for weights in (balanced, given):
        assert float(weights[rare.train.labels].mean()) == pytest.approx(1)


def test_class_weights_multiply_losses_that_read_labels(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """One step of plain SGD equals that of torch's weighted loss; soft targets are not weighted."""
    recipe = Recipe(epochs=1, batch_size=48, lr=0.1, momentum=0, weight_decay=0, class_weights=(1, 2, 3, 4))
    data = replace(tiny_data, views=tiny_data.modality.unaugmented)
    model, reference, teacher = tiny_model(1), tiny_model(1), tiny_model(2)
    terms = {"ce": CrossEntropy(), "kd": SoftTargets(2.0)}
    fit(Learner(model, Frozen(teacher), terms), data=data, recipe=recipe, execution=Execution.on(on_cpu))
    inputs = data.train.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]) / 2.5
    logits = reference.train()(inputs)
    loss = (weights[data.train.labels] * F.cross_entropy(logits, data.train.labels, reduction="none")).mean()
    loss = loss + SoftTargets(2.0)(logits, teacher.eval()(inputs).detach())
    loss.backward()
    for own, other in zip(model.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(own, other - 0.1 * other.grad, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_class_balanced_batches(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    data = replace(tiny_data, train=tiny_data.train.subset(torch.tensor([0, 1, 2, 3, 4, 8, 12, 16])))
    execution, recipe = Execution.on(on_cpu), Recipe(epochs=1, batch_size=4, class_balanced=True)
    seen: list[Tensor] = []

    class Recorded(CrossEntropy):
        def forward(self, student: Any, teacher: Any, batch: Any) -> Tensor:
            seen.append(batch.targets)
            return super().forward(student, teacher, batch)

    fit(Learner(tiny_model(), None, {"ce": Recorded()}), data=data, recipe=recipe, execution=execution)
    assert [sorted(labels.tolist()) for labels in seen[1:]] == [[0, 1, 2, 3]] * 2
    with refused("class_balanced", "another way"):
        fit(Learner(tiny_model(), None, CE), data=data, recipe=recipe, execution=execution, order=LabelledFirst(2))
    fit(Learner(tiny_model(), None, CE), data=data, recipe=recipe.replace(class_balanced=False), order=class_balanced)


# --- fits


def weights_of(
    model: Tapped, data: Data, on_cpu: Hardware, folder: Path | None = None, stop: int | None = None, **recipe: Any
) -> dict[str, Tensor]:
    teacher = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), *data.mean_std)
    with torch.no_grad():
        teacher.module[1].weight.copy_(torch.linspace(-1, 1, 256).view(4, 64))  # type: ignore[operator, index]
        teacher.module[1].bias.zero_()  # type: ignore[operator, index]
    execution = Execution.on(on_cpu, checkpoints=Checkpoints(folder) if folder else None)
    fit(
        Learner(model, Frozen(teacher), {"ce": CrossEntropy(), "kd": SoftTargets(3.0)}),
        data=data,
        recipe=Recipe(**{"epochs": 3, "batch_size": 16, "lr": 0.05} | recipe),
        execution=execution,
        until=None if stop is None else lambda history: len(history) == stop,
        seed=2,
    )
    return {name: value.clone() for name, value in model.module.state_dict().items()}


CHANGES = [
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"},
    {"accumulate": 4},
    {"ema": 0.9},
    {"ema": 0.9, "accumulate": 2, "class_balanced": True},
]


@pytest.mark.parametrize("recipe", CHANGES, ids=str)
def test_stopped_fits_resume_exactly(
    recipe: dict[str, Any], tiny_data: Data, tiny_model: Net, on_cpu: Hardware, tmp_path: Path, changed: Any
) -> None:
    whole = weights_of(tiny_model(), tiny_data, on_cpu, **recipe)
    weights_of(tiny_model(), tiny_data, on_cpu, tmp_path, stop=1, **recipe)
    assert changed(whole, weights_of(tiny_model(3), tiny_data, on_cpu, tmp_path, **recipe)) == set()
    assert changed(whole, weights_of(tiny_model(), tiny_data, on_cpu))  # the option has an effect


def test_teacher_and_student_get_the_same_mixed_images(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    inputs: list[Tensor] = []

    class Recording(Frozen):
        def __call__(self, batch: Any, *args: Any) -> Any:
            inputs.append(batch.inputs)
            assert batch.key is None
            return super().__call__(batch, *args)

    student, seen = tiny_model(), []
    student.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    learner = Learner(student, Recording(tiny_model(1)), {"kd": SoftTargets()})
    fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16, mixup=1.0), execution=Execution.on(on_cpu))
    in_steps = [images for images in seen if len(images) == 16][:3]  # then the held-out split is evaluated
    assert all(torch.equal(student.normalised(a), b) for a, b in zip(inputs[-3:], in_steps, strict=True))


def test_parts_equal_the_whole_batch_without_batch_norm(tiny_data: Data, on_cpu: Hardware) -> None:
    def network() -> Tapped:
        torch.manual_seed(0)
        return Tapped(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)), *tiny_data.mean_std
        )

    whole = weights_of(network(), tiny_data, on_cpu, clip=0.5)
    for parts in (2, 4, 16):
        parted = weights_of(network(), tiny_data, on_cpu, clip=0.5, accumulate=parts)
        for name, value in whole.items():
            torch.testing.assert_close(parted[name], value, rtol=1e-4, atol=1e-5)


# --- refusals


def trained(learner: Learner, data: Data, on_cpu: Hardware, update: Any = None, **recipe: Any) -> None:
    options = {} if update is None else {"update": update}
    execution = Execution.on(on_cpu)
    fit(learner, data=data, recipe=Recipe(epochs=1, batch_size=16, **recipe), execution=execution, **options)


def test_options_that_cannot_work_are_refused(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    class Hard(CrossEntropy):
        uses_soft_labels = False

    def learner(terms: Any = None, **options: Any) -> Learner:
        return Learner(tiny_model(), None, terms or {"ce": CrossEntropy()}, **options)

    with refused("mixup", "'ce' reads one class per sample"):
        trained(learner({"ce": Hard()}), tiny_data, on_cpu, mixup=0.2)
    with refused("cutmix", "weights single samples"):
        trained(learner(sample_weight=lambda *_: torch.ones(16)), tiny_data, on_cpu, cutmix=1.0)
    with refused("label_smoothing", "has no effect on term 'ce'"):
        trained(learner({"ce": Hard()}), tiny_data, on_cpu, label_smoothing=0.1)
    with refused("class_weights", "batches of their own"):
        trained(learner(), tiny_data, on_cpu, lambda step: None, class_weights="balanced")
    with refused("accumulate=2", "steps of its own"):
        trained(learner(), tiny_data, on_cpu, in_turn, accumulate=2)
    with refused("accumulate=3", "16 samples"):
        trained(learner(), tiny_data, on_cpu, accumulate=3)
    with refused("class_weights", "2 numbers", "4 classes"):
        trained(learner(), tiny_data, on_cpu, class_weights=(1, 2))
    with refused("class_weights", "0 for all"):
        trained(learner(), tiny_data, on_cpu, class_weights=(0, 0, 0, 0))

    class Scalar(CrossEntropy):
        def forward(self, *args: Any) -> Tensor:
            return super().forward(*args).mean()

    with refused("one value for the whole batch", "class_weights"):
        trained(learner({"ce": Scalar()}), tiny_data, on_cpu, class_weights="balanced")
    with refused("teacher_cache", "mixup"):
        Config(teacher_cache="cache", mixup=0.2)


def test_terms_around_terms_have_their_properties() -> None:
    assert OnRole("branch1", CrossEntropy()).uses_soft_labels
    assert not OnRole("branch1", SoftTargets()).uses_soft_labels


def test_a_stage_without_labels_ignores_changes_of_labels(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), {"hint": Hint("stage1", "stage1")})
    trained(learner, tiny_data, on_cpu, label_smoothing=0.1, class_weights="balanced", mixup=0.5)


def test_cohorts_in_turn_are_trained_on_mixtures(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    models = [tiny_model(1), tiny_model(2)]
    learners = [
        Learner(a, Peers(b), {"ce": CrossEntropy(), "kd": SoftTargets()}, name=str(n))
        for n, (a, b) in enumerate([models, models[::-1]])
    ]
    execution = Execution.on(on_cpu)
    recipe = Recipe(epochs=1, batch_size=16, mixup=0.5, ema=0.9)
    fitted = fit(*learners, data=tiny_data, recipe=recipe, execution=execution, update=in_turn)
    assert set(fitted.selected) == {"0", "1"}


def test_methods_take_the_options_from_the_recipe(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(
        tiny_data,
        lambda: tiny_model(2),
        [tiny_model(1)],
        recipe=Recipe(epochs=1, batch_size=16, mixup=0.2, label_smoothing=0.1, ema=0.9),
        hardware=on_cpu,
    )
    assert find("fitnet")(run) is not None
    assert len(run.fits) == 2
