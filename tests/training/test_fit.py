"""The training loop against hand-written loops, and state that it must not change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.data.loader import Batches
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers, Source
from tutelage.terms import CrossEntropy, Hint, SoftTargets, Term
from tutelage.training import Learner, Step, fit, in_turn, together
from tutelage.training.execution import Execution
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
StateOf = Callable[[nn.Module], dict[str, Tensor]]
Changed = Callable[..., set[str]]


class Probe(Term):
    """Calls a function with the outputs and the batch. Its value is the loss; None: 0 per sample, with a gradient."""

    def __init__(
        self,
        look: Callable[[Outputs, Outputs | None, Batch], Tensor | None],
        roles: tuple[str, ...] = ("logits",),
        teacher_roles: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.look, self.roles, self._teacher_roles = look, roles, teacher_roles

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return self._teacher_roles

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert batch is not None
        value = self.look(student, teacher, batch) if torch.is_grad_enabled() else None  # None in the dry run
        return student[self.roles[0]].flatten(1).sum(1) * 0 if value is None else value


def batches_of(data: Data, recipe: Recipe, seed: int = 0) -> list[Batch]:
    batches = Batches(data.train, batch_size=recipe.batch_size, views=data.views, seed=seed)
    return [batch for epoch in range(recipe.epochs) for batch in batches.epoch(epoch)]


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


# --- weights, schedules and skipped computation


def test_weight_schedule_gets_progress_from_0_to_1(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    values: list[float] = []

    def weight(progress: float) -> float:
        values.append(progress)
        return 1.0

    recipe = Recipe(epochs=2, batch_size=16)
    fit(
        Learner(tiny_model(), None, {"ce": weight * CrossEntropy()}),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
    )
    assert sorted(set(values)) == pytest.approx([step / 6 for step in range(6)])


class RecordingSource(Source):
    """A source that records the roles of every request."""

    def __init__(self, inner: Frozen) -> None:
        self.inner, self.requests = inner, list[tuple[str, ...]]()

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Any) -> Outputs:
        if torch.is_grad_enabled():
            self.requests.append(tuple(roles))
        return self.inner(batch, roles, cohort)


def test_term_of_weight_0_is_not_computed(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    def raise_error(*_: object) -> None:
        raise AssertionError("computed")

    source = RecordingSource(Frozen(tiny_model(seed=1)))
    terms = {"ce": CrossEntropy(), "x": 0 * Probe(raise_error, teacher_roles=("stage1",)), "kd": 0.0 * SoftTargets()}
    fit_result = fit(Learner(tiny_model(), source, terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert source.requests == []
    assert fit_result.history[0]["learners"]["student"]["x"] == 0


def test_teacher_computes_only_the_roles_of_terms_with_nonzero_weight(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    source = RecordingSource(Frozen(tiny_model(seed=1)))
    later = Probe(lambda *_: None, teacher_roles=("stage1",))
    terms = {
        "ce": CrossEntropy(),
        "kd": (lambda progress: float(progress < 0.5)) * SoftTargets(),
        "x": (lambda progress: float(progress >= 0.5)) * later,
    }
    fit(Learner(tiny_model(), source, terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert source.requests == [("logits",)] * 3 + [("stage1",)] * 3


def test_fit_with_only_terms_of_weight_0_changes_only_running_statistics(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    before = state_of(model)
    fit(Learner(model, None, {"ce": 0 * CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert all("running" in name or "tracked" in name for name in changed(before, state_of(model)))


# --- trainable and frozen parameters


def test_parameters_outside_trainable_and_their_statistics_do_not_change(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    before = state_of(model)

    def upper(name: str) -> bool:
        return name.startswith(("conv2", "bn2", "fc"))

    fit(
        Learner(model, None, {"ce": CrossEntropy()}, trainable=upper),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    updated_names = {name.removeprefix("module.") for name in changed(before, state_of(model))}
    names = {name.removeprefix("module.") for name in before}
    assert updated_names == {name for name in names if upper(name)}
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for name, p in model.module.named_parameters() if not upper(name))


def test_frozen_parameters_stay_frozen_without_a_predicate(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    model.module.get_submodule("conv1").requires_grad_(False)
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = changed(before, state_of(model))
    assert "module.conv1.weight" not in updated_names
    assert "module.conv2.weight" in updated_names
    assert [n for n, p in model.module.named_parameters() if not p.requires_grad] == ["conv1.weight"]


def test_feature_terms_do_not_change_later_layers(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1, width=6)
    before = state_of(model)
    fit_result = fit(
        Learner(model, Frozen(teacher), {"hint": Hint("stage1", "stage1", "mean")}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    updated_names = {name.removeprefix("module.") for name in changed(before, state_of(model))}
    assert updated_names == {
        name.removeprefix("module.") for name in before if name.startswith(("module.conv1", "module.bn1"))
    }
    assert set(fit_result.history[0]["learners"]["student"]) == {"hint"}  # no accuracy of untrained logits
    assert fit_result.selected == {}


def test_parameters_of_terms_are_trained(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    term = Hint("stage1", "stage1", "mean")
    learner = Learner(tiny_model(), Frozen(tiny_model(seed=1, width=6)), {"hint": term})
    weights: list[Tensor] = []
    fit(
        learner,
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        report=lambda _: weights.append(term.regressor.weight.detach().clone()),  # type: ignore[union-attr,operator]
    )
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("layer", ["", "module.bn2"])
def test_learners_are_in_train_mode_at_every_step(
    layer: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    model, modes = tiny_model(), list[bool]()

    def disturb(*_: object) -> None:
        modes.append(all(module.training for module in model.modules()))
        model.get_submodule(layer).eval()  # as a user's term or callback might

    term = Probe(disturb)
    fit(
        Learner(model, None, {"ce": CrossEntropy(), "x": term}),
        data=tiny_data,
        recipe=Recipe(epochs=2, batch_size=16),
        execution=Execution.on(on_cpu),
        report=lambda _: model.eval() and None,
    )
    assert modes == [True] * 6


def test_custom_train_method_may_keep_layers_in_eval_mode(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    class FixedStatistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_model().module

        def train(self, mode: bool = True) -> FixedStatistics:
            super().train(mode)
            self.net.get_submodule("bn1").eval()
            return self

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.net(inputs)
            return logits

    model = Tapped(FixedStatistics())
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = {name.removeprefix("module.net.") for name in changed(before, state_of(model)) if "running" in name}
    assert updated_names == {"bn2.running_mean", "bn2.running_var"}


def test_teacher_stays_in_eval_mode_and_unchanged(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    teacher = tiny_model(seed=1)
    before = state_of(teacher)
    terms = {"kd": SoftTargets(), "x": Probe(lambda *_: teacher.train() and None)}
    fit(Learner(tiny_model(), Frozen(teacher), terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert changed(before, state_of(teacher)) == set()
    assert all(p.grad is None for p in teacher.parameters())


# --- factors that must not change training


def fit_with_dropout(data: Data, model: Tapped, hardware: Hardware, **terms: Any) -> Tapped:
    learner = Learner(model, EMA(model, 0.5), {"ce": CrossEntropy(), "kd": SoftTargets()} | terms)
    fit(learner, data=data, recipe=Recipe(epochs=3, batch_size=16), execution=Execution.on(hardware))
    return model


def test_validation_does_not_change_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: StateOf, changed: Changed
) -> None:
    with_validation = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu)
    without_validation = fit_with_dropout(replace(tiny_data, validation=None), tiny_model(dropout=0.3), on_cpu)
    assert changed(state_of(with_validation), state_of(without_validation)) == set()


def test_building_an_unused_regressor_does_not_change_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: StateOf, changed: Changed
) -> None:
    """Building a regressor draws random numbers, which must not affect dropout."""
    without_term = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu)
    unused_term = 0 * Hint("stage1", "stage1", "mean", "always")
    with_regressor = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu, unused=unused_term)
    assert unused_term.term.regressor is not None  # type: ignore[attr-defined]
    assert changed(state_of(with_regressor), state_of(without_term)) == set()


def test_seed_determines_batches_and_dropout(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    states = []
    for seed in (0, 0, 1):
        model = tiny_model(dropout=0.3)
        torch.rand(seed + 1)  # earlier draws must not matter
        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=short,
            execution=Execution.on(on_cpu),
            seed=seed,
        )
        states.append(state_of(model))
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


# --- cohorts


class StepRecorder(Source):
    """A source that records the steps of its learner."""

    def __init__(self, events: list[str], name: str) -> None:
        self.events, self.name = events, name

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Any) -> Outputs:
        raise AssertionError("no term reads the teacher")

    def after_step(self) -> None:
        self.events.append(f"step {self.name}")


def test_together_runs_all_forward_passes_before_any_update(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    events: list[str] = []
    learners = []
    for name in "abc":
        model = tiny_model(seed=ord(name))
        model.module.register_forward_hook(
            lambda *_, name=name: events.append(f"forward {name}") if torch.is_grad_enabled() else None
        )
        learners.append(Learner(model, StepRecorder(events, name), {"ce": CrossEntropy()}, name=name))
    data = replace(tiny_data, validation=None)
    fit(*learners, data=data, recipe=Recipe(epochs=1, batch_size=24), execution=Execution.on(on_cpu), update=together)
    assert events == [*("forward a", "forward b", "forward c"), *("step a", "step b", "step c")] * 2


def test_together_gives_peers_outputs_from_before_the_step(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """Each network's targets in a step are the other network's outputs before the step."""
    nets = [tiny_model(seed=1), tiny_model(seed=2)]
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    targets: dict[int, list[Tensor]] = {0: [], 1: []}

    def probe(number: int) -> Probe:
        def look(student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
            assert teacher is not None
            outputs[number].append(student["logits"].detach().clone())
            targets[number].append(teacher["logits"].clone())
            assert not teacher["logits"].requires_grad

        return Probe(look, teacher_roles=("logits",))

    learners = [
        Learner(net, Peers(nets[1 - number]), {"ce": CrossEntropy(), "x": probe(number)}, name=str(number))
        for number, net in enumerate(nets)
    ]
    fit(*learners, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
    for number in (0, 1):
        assert len(targets[number]) == 3
        assert all(map(torch.equal, targets[number], outputs[1 - number]))


def test_in_turn_gives_the_second_network_updated_outputs_of_the_first(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    matches: list[bool] = []

    def look(student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        assert teacher is not None
        updated_copy = copy.deepcopy(first).train()  # after its step on this batch
        matches.append(torch.equal(teacher["logits"], updated_copy(batch.inputs)))

    learners = (
        Learner(first, Peers(second), {"ce": CrossEntropy(), "kd": SoftTargets(1.0)}, name="first"),
        Learner(second, Peers(first), {"ce": CrossEntropy(), "x": Probe(look, teacher_roles=("logits",))}, name="2nd"),
    )
    fit(
        *learners,
        data=tiny_data,
        recipe=Recipe(epochs=2, batch_size=16),
        execution=Execution.on(on_cpu),
        update=in_turn,
    )
    assert matches == [True] * 6


def test_in_turn_updates_running_statistics_once_per_batch(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, changed: Changed
) -> None:
    recipe = Recipe(epochs=1, batch_size=48)
    nets = [tiny_model(seed=seed) for seed in range(3)]
    references = [copy.deepcopy(net).train() for net in nets]
    learners = [
        Learner(
            net, Peers(*(n for n in nets if n is not net)), {"ce": CrossEntropy(), "kd": SoftTargets()}, name=str(k)
        )
        for k, net in enumerate(nets)
    ]
    fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=in_turn)
    (batch,) = batches_of(tiny_data, recipe)
    for net, reference in zip(nets, references, strict=True):
        reference(batch.inputs)
        assert changed(dict(net.named_buffers()), dict(reference.named_buffers())) == set()
        assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_identical_networks_stay_identical_under_together_but_not_under_in_turn(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    for update, differ in ((together, False), (in_turn, True)):
        nets = [tiny_model(seed=1), tiny_model(seed=1)]
        learners = [
            Learner(net, Peers(nets[1 - k]), {"ce": CrossEntropy(), "kd": SoftTargets(1.0)}, name=str(k))
            for k, net in enumerate(nets)
        ]
        fit(*learners, data=tiny_data, recipe=short, execution=Execution.on(on_cpu), update=update)
        assert bool(changed(state_of(nets[0]), state_of(nets[1]))) == differ


@pytest.mark.parametrize("update", [together, in_turn])
def test_gradients_do_not_reach_peers(
    update: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    """A network that other networks imitate trains to the same weights as it does alone."""
    target_peer, imitating_peer, single_learner = tiny_model(seed=1), tiny_model(seed=2), tiny_model(seed=1)
    fit(
        Learner(imitating_peer, Peers(target_peer), {"kd": SoftTargets(1.0)}, name="imitator"),
        Learner(target_peer, None, {"ce": CrossEntropy()}, name="imitated"),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        update=update,
    )
    fit(
        Learner(single_learner, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    assert changed(state_of(target_peer), state_of(single_learner)) == set()


def test_peers_may_read_features_that_no_own_term_reads(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    fit_result = fit(
        Learner(first, None, {"ce": CrossEntropy()}, name="first"),
        Learner(second, Peers(first), {"ce": CrossEntropy(), "hint": Hint("stage1", "stage2", "mean")}, name="second"),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    assert fit_result.history[-1]["learners"]["second"]["hint"] > 0


@pytest.mark.parametrize("update", [together, in_turn])
def test_train_accuracy_is_that_of_the_pass_before_the_update(
    update: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """For every network alike, before its own step on the batch, which would raise the accuracy."""
    nets = [tiny_model(seed=1), tiny_model(seed=2)]
    learners = [
        Learner(net, Peers(nets[1 - k]), {"ce": CrossEntropy(), "kd": 0.0 * SoftTargets()}, name=str(k))
        for k, net in enumerate(nets)
    ]
    recipe = Recipe(epochs=1, batch_size=48, lr=0.5)
    (batch,) = batches_of(tiny_data, recipe)
    expected = [(copy.deepcopy(n).train()(batch.inputs).argmax(1) == batch.targets).float().mean() for n in nets]
    fit_result = fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=update)
    accuracies = [fit_result.history[0]["learners"][str(k)]["train_accuracy"] for k in range(2)]
    assert accuracies == pytest.approx([float(accuracy) for accuracy in expected])


def test_custom_update_rule(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    """A rule is a function of a step; this one leaves out every second update."""
    steps: list[int] = []

    def alternate(step: Step) -> None:
        learner = step.learners[0]
        step.forward(learner)
        loss = step.loss(learner)
        if len(steps) % 2 == 0:
            step.update(learner, loss)
        steps.append(1)

    model = tiny_model()
    fit(
        Learner(model, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        update=alternate,
    )
    assert len(steps) == 6


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


class BackboneAndHead(nn.Module):
    """A backbone with batch normalisation and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4, affine=False)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_fully_frozen_layers_stay_in_eval_mode(
    tiny_data: Data, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = Tapped(BackboneAndHead())
    model.module.get_submodule("backbone").requires_grad_(False)
    before = state_of(model)
    modes: dict[str, bool] = {}

    def look(forward_pass: ForwardPass, progress: float) -> Tensor:
        modes.update((name, module.training) for name, module in model.module.named_modules())
        return torch.ones(len(forward_pass.batch))

    learner = Learner(model, None, {"ce": CrossEntropy()}, sample_weight=look)
    fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert not any(name.startswith("module.backbone") for name in changed(before, state_of(model)))
    assert {name for name, training in modes.items() if not training} == {
        "backbone", *(f"backbone.{number}" for number in range(5))
    }  # fmt: skip
    assert "module.head.0.running_mean" in changed(before, state_of(model))


def test_frozen_batch_normalisation_keeps_its_statistics(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    model.module.get_submodule("bn2").requires_grad_(False)
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = changed(before, state_of(model))
    assert not any(".bn2." in name for name in updated_names)
    assert {"module.bn1.running_mean", "module.conv2.weight"} <= updated_names
