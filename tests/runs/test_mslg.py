"""The method mslg: the meta-gradient, its update rule, and the two stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.data.batch import Batch
from tutelage.data.conditions import parse_noise
from tutelage.methods import find
from tutelage.methods.mslg import MetaLabels, initial_scores, smallest_losses
from tutelage.methods.mslg.labels import Entropy, LearnedLabels
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run, Step
from tutelage.training.fit import FitResult
from tutelage.training.processes import Processes

Net = Callable[..., Tapped]
CLASSES, SAMPLES = 3, 9


def small(*layers: nn.Module) -> Tapped:
    """Six inputs, 8 units, three classes; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, CLASSES))
    return Tapped(module).double().train()


class World:
    """A network, nine samples with learned labels, a batch of four of them and a meta batch; float64."""

    def __init__(self, model: Tapped | None = None, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.model = (small() if model is None else model).to(dtype)
        images = torch.rand(SAMPLES, 1, 2, 3, generator=generator).to(dtype)
        index = torch.tensor([70, 3, 15, 9, 20, 41, 8, 2, 55])
        labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        split = Split(torch.zeros(SAMPLES, 2, 3, 1, dtype=torch.uint8), labels, index, labels)
        self.scores = torch.randn(SAMPLES, CLASSES, generator=generator).to(dtype)
        self.labels = LearnedLabels(split, self.scores)
        self.places = torch.tensor([4, 1, 8, 6])
        self.batch = Batch(images[self.places], labels[self.places], index[self.places], None)
        answers = torch.tensor([0, 2, 1, 1, 0])
        self.meta = Batch(torch.rand(5, 1, 2, 3, generator=generator).to(dtype), answers, answers, None)
        self.learner = Learner(self.model, None, {"labels": self.labels, "entropy": 1.0 * Entropy()})
        self.losses: list[Tensor] = []

    def step(
        self,
        alpha: float = 0.5,
        beta: float = 1.0,
        max_step: float | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Tensor:
        """How one step of the rule changed the scores of all samples, (9, 3). The network is not updated."""
        MetaLabels(self.labels, alpha, beta, max_step)(
            Step(
                self.batch,
                0,
                0.0,
                [self.learner],
                streams={"meta": lambda number: self.meta},
                roles={self.learner: ("logits",)},
                apply=lambda learner, loss: self.losses.append(loss),
                autocast=autocast,
            )
        )
        return self.labels.store.values - self.scores

    def meta_loss(self, scores: Tensor, alpha: float) -> Tensor:
        """CE of the virtually updated network, step by step; (4, 3) scores of the batch."""
        logits = self.model(self.batch.inputs)
        p = logits.softmax(1)
        inner = (p * (p.log() - scores.log_softmax(1))).sum() / (4 * CLASSES)
        parameters = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(inner, list(parameters.values()))
        virtual_parameters = {n: p - alpha * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
        return F.cross_entropy(
            self.model.with_parameters(virtual_parameters, self.meta.inputs), self.meta.targets
        ).detach()


# --- update of labels


@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_the_meta_gradient_equals_central_differences(alpha: float) -> None:
    setup, h = World(), 1e-5
    expected = torch.zeros(4, CLASSES, dtype=torch.float64)
    for row in range(4):
        for label in range(CLASSES):
            score_change = torch.zeros(4, CLASSES, dtype=torch.float64)
            score_change[row, label] = h
            scores = setup.scores[setup.places]
            higher_loss, lower_loss = (
                setup.meta_loss(scores + score_change, alpha),
                setup.meta_loss(scores - score_change, alpha),
            )
            expected[row, label] = (higher_loss - lower_loss) / (2 * h)
    change = setup.step(alpha, beta=3.0)[setup.places]
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(change, -3 * expected, atol=1e-10, rtol=0)


def test_meta_gradient_equals_first_order_form() -> None:
    """dL_meta/ds_i = -alpha <grad L_meta(theta'), d/ds_i grad L_c(theta)>."""
    setup, alpha = World(), 0.5
    parameters = dict(setup.model.named_parameters())
    scores = setup.scores[setup.places]

    def inner_gradient(scores: Tensor) -> Tensor:
        p = setup.model(setup.batch.inputs).softmax(1)
        loss = (p * (p.log() - scores.log_softmax(1))).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    jacobian = torch.autograd.functional.jacobian(inner_gradient, scores)  # (parameters, 4, 3)
    step, at = inner_gradient(scores).detach(), 0
    virtual_parameters = {}
    for name, parameter in parameters.items():
        part = step[at : at + parameter.numel()].view_as(parameter)
        virtual_parameters[name] = (parameter - alpha * part).detach().requires_grad_()
        at += parameter.numel()
    loss = F.cross_entropy(setup.model.with_parameters(virtual_parameters, setup.meta.inputs), setup.meta.targets)
    outer = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(virtual_parameters.values()))])
    expected = -alpha * torch.einsum("p,pbc->bc", outer, jacobian)
    torch.testing.assert_close(setup.step(alpha)[setup.places], -expected)


def test_score_rows_keep_their_mean_and_other_rows_are_unchanged() -> None:
    setup = World()
    change = setup.step(beta=100.0)
    other_rows = [row for row in range(SAMPLES) if row not in setup.places.tolist()]
    assert torch.equal(setup.labels.store.values[other_rows], setup.scores[other_rows])
    assert bool(change[setup.places].any(1).all())
    assert float(change.sum(1).abs().max()) < 1e-12


def test_labels_do_not_change_without_virtual_step() -> None:
    setup = World()
    assert not setup.step(alpha=0, beta=1e9).any()
    assert len(setup.losses) == 1


def test_label_change_is_proportional_to_virtual_step() -> None:
    first_step, second_step = (World().step(alpha) for alpha in (1e-5, 2e-5))
    torch.testing.assert_close(second_step, 2 * first_step, rtol=1e-4, atol=0)


def test_label_update_reduces_meta_loss() -> None:
    setup = World()
    before = setup.meta_loss(setup.scores[setup.places], 0.5)
    change = setup.step(0.5, beta=1.0)[setup.places]
    after = setup.meta_loss(setup.scores[setup.places] + change, 0.5)
    torch.testing.assert_close(after - before, -change.square().sum(), rtol=0.05, atol=0)


def test_max_step_shortens_only_long_steps() -> None:
    free = World().step(beta=100.0)
    lengths = free.norm(dim=1)
    longest = float(lengths[lengths > 0].median())
    limited_step = World().step(beta=100.0, max_step=longest)
    for row, length in enumerate(lengths.tolist()):
        factor = longest / length if length > longest else 1.0
        torch.testing.assert_close(limited_step[row], factor * free[row])
    assert not World().step(alpha=0, max_step=1.0).isnan().any()


# --- update of the network


def test_network_is_updated_on_new_labels_only() -> None:
    setup = World()
    setup.step(beta=100.0)
    (loss,) = setup.losses
    p = setup.model(setup.batch.inputs).softmax(1)
    label = setup.labels.store.values[setup.places]
    expected = -(p * label.log_softmax(1)).mean()
    torch.testing.assert_close(loss, expected)
    parameters = list(setup.model.parameters())
    for tensor, other_tensor in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(tensor, other_tensor)
    assert all(parameter.grad is None for parameter in parameters)
    assert not label.requires_grad


def test_running_statistics_are_updated_once(state_of: Any, changed: Any) -> None:
    setup, network = World(small(nn.BatchNorm1d(8))), small(nn.BatchNorm1d(8))
    setup.step()
    network(setup.batch.inputs)
    assert changed(state_of(network), state_of(setup.model)) == set()
    assert int(setup.model.module[2].num_batches_tracked) == 1  # type: ignore[index]


def test_virtual_and_real_step_share_dropout() -> None:
    """If labels do not change, the loss is that of the forward pass used by the virtual step."""
    torch.manual_seed(0)
    setup = World(small(nn.Dropout(0.5)))
    setup.step(beta=0.0)
    torch.manual_seed(0)
    p = setup.model(setup.batch.inputs).softmax(1)
    expected = -(p * setup.scores[setup.places].log_softmax(1)).mean()
    torch.testing.assert_close(setup.losses[0], expected)


def test_frozen_and_unused_layers_are_not_updated() -> None:
    model = small()
    flatten, first = model.module[0], model.module[1]  # type: ignore[index]
    flatten.unused = nn.Linear(2, 2)
    torch.testing.assert_close(World(model).step(), World().step())
    first.requires_grad_(False)
    frozen = World(model).step()
    assert frozen.any()
    assert not torch.allclose(frozen, World().step())


def test_label_updates_under_autocast_equal_float32() -> None:
    default_labels, autocast_labels = (
        World(dtype=torch.float32).step(beta=100.0, autocast=autocast)
        for autocast in (nullcontext, lambda: torch.autocast("cpu", torch.bfloat16))
    )
    assert default_labels.any()
    assert torch.equal(default_labels, autocast_labels)


class Attention(nn.Module):
    """Self-attention with a token per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc = nn.Linear(1, 24), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x.flatten(2).transpose(1, 2))[:, None].chunk(3, -1)
        return self.fc(F.scaled_dot_product_attention(query, key, value).mean((1, 2)))  # type: ignore[no-any-return]


def test_fused_attention_is_supported() -> None:
    assert World(Tapped(Attention()), torch.float32).step(beta=100.0).any()


def test_compiled_code_is_not_run() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError

    setup = World()
    setup.model.compile(backend=backend)
    assert torch.equal(setup.step(), World().step())


# --- initial labels, and the meta set without trusted samples


def test_initial_scores() -> None:
    scores = initial_scores(torch.tensor([2, -1, 0]), 4, 10)
    assert scores.tolist() == [[0, 0, 10, 0], [0, 0, 0, 0], [10, 0, 0, 0]]
    assert scores.dtype == torch.float32
    assert scores.softmax(1)[1].tolist() == [0.25] * 4
    soft = torch.tensor([[0.25, 0.75], [1, 0]])
    assert torch.equal(initial_scores(soft, 2, 8), 8 * soft)


def test_the_smallest_losses_of_each_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1, 2, 0])
    margin = torch.tensor([1.0, 5, 3, 2, 9, 4, 8, 50, -7, 4])
    logits = margin[:, None] * F.one_hot(labels.clamp(min=0), 3)
    assert smallest_losses(logits, labels, 0.6).nonzero().squeeze(1).tolist() == [1, 4, 6, 8, 9]
    assert smallest_losses(logits, labels, 0.0).nonzero().squeeze(1).tolist() == [1, 4, 8]
    soft = F.one_hot(labels.clamp(min=0), 3).float()
    soft[4] = torch.tensor([0.3, 0.7, 0])  # a confident prediction for an uncertain label has a large loss
    assert smallest_losses(logits, soft, 0.6).nonzero().squeeze(1).tolist() == [1, 5, 6, 7, 8]


# --- the stages


class RecordingRun(Run):
    """A run that records the arguments of its fits."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.fitted: list[tuple[tuple[Learner, ...], dict[str, Any]]] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.fitted.append((learners, options))
        return super().fit(*learners, **options)


Make = Callable[..., RecordingRun]


@pytest.fixture
def noisy_data(tiny_data: Data) -> Data:
    """Twelve of 48 labels are wrong, and three samples of each class are trusted."""
    gradients = tiny_data
    for condition in parse_noise("0.4+trusted:3"):
        gradients = condition(gradients)
    return gradients


@pytest.fixture
def make(noisy_data: Data, tiny_model: Net, on_cpu: Hardware) -> Make:
    """``make(data=noisy, epochs=6, **options)``: a run."""

    def run(data: Data = noisy_data, epochs: int = 6, **options: Any) -> RecordingRun:
        recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05)
        return RecordingRun(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, **options)

    return run


def test_trusted_samples_are_the_meta_set(make: Make, noisy_data: Data) -> None:
    run = make()
    student = find("mslg")(run)
    (first, before), (second, after) = run.fitted
    is_trusted = noisy_data.train.trusted
    assert is_trusted is not None
    assert "data" not in before
    assert (before["epochs"], before["schedule"], after["epochs"]) == (2, "constant", 4)
    assert sorted(after["streams"]["meta"].index.tolist()) == noisy_data.train.index[is_trusted].tolist()
    assert sorted(after["data"].train.index.tolist()) == noisy_data.train.index[~is_trusted].tolist()
    assert after["data"].validation is noisy_data.validation
    assert first[0].model is second[0].model is student
    history = [record["learners"]["student"] for record in run.fits[1].history]
    assert all({"labels", "entropy", "train_accuracy", "validation_accuracy"} <= record.keys() for record in history)
    assert list(run.selected) == [student]
    labels = after["update"].labels
    assert labels is second[0].terms["labels"].term
    initial = initial_scores(after["data"].train.labels, 4, 10)
    torch.testing.assert_close(labels.store.values.sum(1), initial.sum(1))
    assert not torch.equal(labels.store.values, initial)


def test_the_first_stage_is_plain_training(make: Make, state_of: Any, changed: Any, noisy_data: Data) -> None:
    states: list[dict[str, Tensor]] = []
    run = make()
    fit = run.fit

    def recording_fit(*learners: Learner, **options: Any) -> FitResult:
        fit_result = fit(*learners, **options)
        states.append(state_of(learners[0].model))
        return fit_result

    run.fit = recording_fit  # type: ignore[method-assign]
    find("mslg")(run)
    plain = make(epochs=2)
    student = plain.student()
    plain.fit(Learner(student, None, {"ce": CrossEntropy()}), schedule="constant")
    assert changed(states[0], state_of(student)) == set()
    assert changed(states[0], states[1])


@pytest.mark.parametrize("trusted", [True, False])
def test_resumes_exactly_in_second_stage(
    trusted: bool, make: Make, noisy_data: Data, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    data = noisy_data if trusted else replace(noisy_data, train=replace(noisy_data.train, trusted=None))

    class StoppedError(Exception):
        pass

    def stopping(record: Any) -> None:
        if (record["fit"], record["epoch"]) == (1, 2):
            raise StoppedError

    reference_run = make(data)
    student = find("mslg")(reference_run)
    with pytest.raises(StoppedError):
        find("mslg")(make(data, folder=tmp_path, report=stopping))
    second_run = make(data, folder=tmp_path)
    assert changed(state_of(student), state_of(find("mslg")(second_run))) == set()
    labels, second_labels = (run.fitted[1][1]["update"].labels.store.values for run in (reference_run, second_run))
    assert torch.equal(labels, second_labels)


def test_meta_set_without_trusted_samples(make: Make, noisy_data: Data) -> None:
    for trusted in (None, torch.zeros(48, dtype=torch.bool)):
        run = make(replace(noisy_data, train=replace(noisy_data.train, trusted=trusted)))
        find("mslg")(run, meta_share=0.25)
        meta, train_part = run.fitted[1][1]["streams"]["meta"], run.fitted[1][1]["data"].train
        assert meta.labels.bincount().tolist() == [3] * 4
        assert sorted([*meta.index.tolist(), *train_part.index.tolist()]) == list(range(48))


def test_wrong_labels_move_towards_correct_labels(make: Make, noisy_data: Data) -> None:
    run = make(epochs=24)
    find("mslg")(run, warmup_share=0.25)
    train, labels = run.fitted[1][1]["data"].train, run.fitted[1][1]["update"].labels.store.values
    is_wrong = train.corrupted
    change = labels - initial_scores(train.labels, 4, 10)
    towards = change.gather(1, train.clean_labels[:, None]) - change.gather(1, train.labels[:, None])
    assert float(towards[is_wrong].mean()) > 0.1


def test_settings_reach_the_second_stage(make: Make) -> None:
    run = make()
    find("mslg")(run, alpha=0.1, beta=7, gamma=0.5, initial=3, max_step=0.2, warmup_share=0.5)
    (learner,), options = run.fitted[1]
    assert options["epochs"] == 3
    rule = options["update"]
    assert (rule.alpha, rule.beta, rule.max_step) == (0.1, 7, 0.2)
    assert learner.terms["entropy"].at(0.5) == 0.5
    torch.testing.assert_close(rule.labels.store.values.sum(1), torch.full((len(rule.labels.store.values),), 3.0))


@pytest.mark.parametrize("kind", ["soft labels", "some without a label"])
def test_soft_and_missing_labels(kind: str, make: Make, noisy_data: Data, soft: Data) -> None:
    data = soft
    if kind == "some without a label":
        labels = noisy_data.train.labels.clone()
        labels[::3] = -1
        data = replace(noisy_data, train=replace(noisy_data.train, labels=labels, trusted=None))
    run = make(data, epochs=3)
    find("mslg")(run)
    meta = run.fitted[1][1]["streams"]["meta"].labels
    assert sorted((meta if meta.ndim == 1 else meta.argmax(1)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("trusted", ["all", "none with a label"])
def test_invalid_meta_set_is_refused(trusted: str, make: Make, noisy_data: Data, refused: Any) -> None:
    all_trusted = torch.ones(48, dtype=torch.bool)
    train = replace(noisy_data.train, trusted=all_trusted)
    if trusted != "all":
        train = replace(noisy_data.train, trusted=None, labels=torch.full((48,), -1))
    with refused("meta set is", "of the 48 training samples", "add samples"):
        find("mslg")(make(replace(noisy_data, train=train)))


def test_several_processes_are_refused(make: Make, refused: Any) -> None:
    with refused("2 processes", "use one process"):
        find("mslg")(make(processes=Processes(0, 2)))
