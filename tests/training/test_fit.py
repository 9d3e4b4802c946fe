"""The training loop against hand-written loops, and the results that it records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.fits import Changed, Net, Probe, batches_of
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.models.outputs import Outputs
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution
from tutelage.training.learner import ForwardPass

# --- one step


def test_sgd_equals_a_hand_written_loop_bit_for_bit(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=5, batch_size=16, lr=0.1, weight_decay=0.01, milestones=(0.4, 0.8), gamma=0.5, warmup=1)
    model, reference = tiny_model(), tiny_model()
    fit(
        Learner(model, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
        seed=3,
    )

    optimizer = torch.optim.SGD(
        reference.module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True
    )
    reference.train()
    for step, batch in enumerate(batches_of(tiny_data, recipe, seed=3)):
        epoch = step // 3
        optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 3) * 0.5 ** ((epoch >= 2) + (epoch >= 4))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in tiny_data.mean_std)
        loss = F.cross_entropy(reference.module((batch.inputs - mean) / std), batch.targets, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, a), b in zip(model.module.state_dict().items(), reference.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_sgd_equals_the_equations_of_nesterov_momentum(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """v <- m v + (g + d w); w <- w - lr ((g + d w) + m v)."""
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05, weight_decay=0.02, schedule="constant")
    model, reference = tiny_model(), tiny_model().train()
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))
    parameters = list(reference.module.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for batch in batches_of(tiny_data, recipe):
        gradients = torch.autograd.grad(F.cross_entropy(reference(batch.inputs), batch.targets), parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                gradient_with_decay = g + 0.02 * p
                v.mul_(0.9).add_(gradient_with_decay)
                p.sub_(0.05 * (gradient_with_decay + 0.9 * v))
    for a, b in zip(model.module.parameters(), parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def _plain(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits, batch.targets)


def _odd(forward_pass: ForwardPass, progress: float) -> Tensor:
    return (forward_pass.batch.index % 2).double()  # deliberately of another dtype than the losses


ONE_STEP: dict[str, Any] = {
    "values per sample": (lambda: {"ce": CrossEntropy()}, None, _plain),
    "a sum of two": (
        lambda: {"a": 0.5 * CrossEntropy(), "b": 2 * Probe(lambda s, t, b: s["logits"].square().sum(1))},
        None,
        lambda z, b: 0.5 * _plain(z, b) + 2 * z.square().sum(1).mean(),
    ),
    "a single value": (lambda: {"x": 3 * Probe(lambda s, t, b: s["logits"].sum())}, None, lambda z, b: 3 * z.sum()),
    "sample weights": (
        lambda: {"ce": CrossEntropy()},
        _odd,
        lambda z, b: (F.cross_entropy(z, b.targets, reduction="none") * (b.index % 2)).sum() / len(b),
    ),
    "a term for all samples": (
        lambda: {"ce": CrossEntropy(), "x": 3 * Probe(lambda s, t, b: s["logits"].square().sum(1)).for_all_samples()},
        _odd,
        lambda z, b: (
            (F.cross_entropy(z, b.targets, reduction="none") * (b.index % 2)).sum() / len(b)
            + 3 * z.square().sum(1).mean()
        ),
    ),
    "sample weights do not affect a single value": (
        lambda: {"x": Probe(lambda s, t, b: s["logits"].sum())},
        _odd,
        lambda z, b: z.sum(),
    ),
    "weights multiply": (lambda: {"ce": 0.5 * (4 * CrossEntropy())}, None, lambda z, b: 2 * _plain(z, b)),
    "a schedule times a number": (
        lambda: {"ce": 0.5 * ((lambda progress: 3 + progress) * CrossEntropy())},
        None,
        lambda z, b: 1.5 * _plain(z, b),
    ),
}


@pytest.mark.parametrize(("terms", "weights", "oracle"), ONE_STEP.values(), ids=list(ONE_STEP))
def test_loss_is_the_weighted_sum_of_means(
    terms: Any, weights: Any, oracle: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    data = replace(tiny_data, train=tiny_data.train.subset(torch.arange(16)))
    recipe = Recipe(epochs=1, batch_size=16, lr=0.1, momentum=0, weight_decay=0, schedule="constant")
    model, reference = tiny_model(), tiny_model().train()
    fit(Learner(model, None, terms(), sample_weight=weights), data=data, recipe=recipe, execution=Execution.on(on_cpu))
    (batch,) = batches_of(data, recipe)
    oracle(reference(batch.inputs), batch).backward()
    for a, b in zip(model.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 1), (3,), ()])
def test_sample_weights_of_a_wrong_shape_are_refused(
    shape: tuple[int, ...], tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, refused: Any
) -> None:
    """(B, 1) times (B,) would broadcast to a meaningless (B, B)."""
    learner = Learner(
        tiny_model(), None, {"ce": CrossEntropy()}, sample_weight=lambda forward_pass, progress: torch.ones(shape)
    )
    with refused("sample_weight of learner 'student'", "(16,)", str(shape)):
        fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu))


def test_unlabelled_samples_add_no_loss_and_count_in_the_mean(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    labels = tiny_data.train.labels[:16].clone()
    labels[4:] = -1
    split = tiny_data.train.subset(torch.arange(16))
    data = replace(tiny_data, train=replace(split, labels=labels))
    recipe = Recipe(epochs=1, batch_size=16, lr=0.1, momentum=0, weight_decay=0, schedule="constant")
    model, reference = tiny_model(), tiny_model().train()
    fit_result = fit(
        Learner(model, None, {"ce": CrossEntropy()}), data=data, recipe=recipe, execution=Execution.on(on_cpu)
    )
    (batch,) = batches_of(data, recipe)
    labelled = batch.targets >= 0
    logits = reference(batch.inputs)
    loss = F.cross_entropy(logits[labelled], batch.targets[labelled], reduction="sum") / 16
    loss.backward()
    for a, b in zip(model.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, rtol=1e-5, atol=1e-6)
    entry = fit_result.history[0]["learners"]["student"]
    assert entry["ce"] == pytest.approx(loss.item(), rel=1e-5)
    accuracy = (logits.argmax(1) == batch.targets)[labelled].float().mean()  # of labelled samples
    assert entry["train_accuracy"] == pytest.approx(float(accuracy))


def test_training_on_soft_labels_lowers_the_loss(soft: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=12, batch_size=16, lr=0.1)
    fit_result = fit(
        Learner(tiny_model(), None, {"ce": CrossEntropy()}), data=soft, recipe=recipe, execution=Execution.on(on_cpu)
    )
    first, last = (fit_result.history[index]["learners"]["student"] for index in (0, -1))
    assert last["ce"] < first["ce"]
    assert last["train_accuracy"] > 0.8


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_clip_bounds_the_gradient_norm(optimizer: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    norms: list[float] = []

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        instance: torch.optim.Optimizer = getattr(torch.optim, optimizer)(parameters, lr=0.01)
        instance.register_step_pre_hook(
            lambda *_: norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))  # type: ignore[union-attr]
        )
        return instance

    for clip in (None, 0.01):
        recipe = Recipe(epochs=1, batch_size=16, optimizer=make_optimizer, clip=clip)
        fit(
            Learner(tiny_model(), None, {"ce": 10 * CrossEntropy()}),
            data=tiny_data,
            recipe=recipe,
            execution=Execution.on(on_cpu),
        )
    assert min(norms[:3]) > 0.01
    assert max(norms[3:]) == pytest.approx(0.01, rel=1e-3)


def test_history_records_the_learning_rate_of_the_optimizer(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(
        epochs=2, batch_size=16, milestones=(0.5,), gamma=0.1, optimizer=lambda p: torch.optim.SGD(p, lr=0.3)
    )
    fit_result = fit(
        Learner(tiny_model(), None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
    )
    assert [record["lr"] for record in fit_result.history] == pytest.approx([0.3, 0.03])


# --- results of a fit


def test_selected_state_is_that_of_the_best_epoch(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, changed: Changed
) -> None:
    """The validation labels are shifted by one class, so training lowers the accuracy and an early epoch is best."""
    split = tiny_data.validation
    assert split is not None
    data = replace(tiny_data, validation=replace(split, labels=(split.labels + 1) % 4))
    model, states = tiny_model(), list[dict[str, Tensor]]()

    def save_state(_: object) -> None:
        states.append({name: value.clone() for name, value in model.module.state_dict().items()})

    fit_result = fit(
        Learner(model, None, {"ce": CrossEntropy()}),
        data=data,
        recipe=Recipe(epochs=6, batch_size=16, lr=0.1),
        execution=Execution.on(on_cpu),
        report=save_state,
    )
    accuracies = [record["learners"]["student"]["validation_accuracy"] for record in fit_result.history]
    best = accuracies.index(max(accuracies))  # the first, if several are equal
    assert best < 5
    selected = fit_result.selected["student"]
    assert (selected.epoch, selected.score) == (best + 1, accuracies[best])
    assert changed(states[best], selected.state) == set()
    assert changed(states[-1], selected.state)
    assert changed(states[-1], model.module.state_dict()) == set()  # the model has the weights of the last epoch


def test_no_state_is_selected_without_a_validation_split(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    data = replace(tiny_data, validation=None)
    fit_result = fit(
        Learner(tiny_model(), None, {"ce": CrossEntropy()}), data=data, recipe=short, execution=Execution.on(on_cpu)
    )
    assert fit_result.selected == {}
    assert "validation_accuracy" not in fit_result.history[0]["learners"]["student"]


def test_history_has_one_record_per_epoch_and_report_gets_the_same(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    reports: list[dict[str, Any]] = []
    terms = {"ce": CrossEntropy(), "kd": 0.5 * SoftTargets()}
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1, milestones=(0.5,), gamma=0.1)
    fit_result = fit(
        Learner(tiny_model(), Frozen(tiny_model(seed=1)), terms, name="me"),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
        report=reports.append,
    )
    assert [record["epoch"] for record in fit_result.history] == [1, 2, 3]
    assert [record["lr"] for record in fit_result.history] == pytest.approx([0.1, 0.01, 0.01])
    assert list(fit_result.history) == reports
    for record in fit_result.history:
        assert set(record["learners"]["me"]) == {"ce", "kd", "train_accuracy", "validation_accuracy"}
        assert record["seconds"] > 0


def test_recorded_term_values_are_unweighted_means_over_the_epoch(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    values: list[float] = []

    def square(student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        value = student["logits"].square().sum(1)
        values.append(float(value.detach().mean()))
        return value

    recipe = Recipe(epochs=1, batch_size=16)
    learner = Learner(tiny_model(), None, {"ce": CrossEntropy(), "x": 7 * Probe(square)})
    fit_result = fit(learner, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))
    assert fit_result.history[0]["learners"]["student"]["x"] == pytest.approx(sum(values) / 3, rel=1e-5)
