"""The method pdiff: ranking, threshold, and equality with plain training otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find, pdiff
from tutelage.methods.pdiff import ProbabilityDifference, bin_of, probability_difference
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, SoftTargets, Term, Weighted
from tutelage.training import Learner, Run
from tutelage.training.learner import ForwardPass


def forward_pass(logits: Tensor, targets: Tensor) -> ForwardPass:
    size = len(targets)
    return ForwardPass(Batch(torch.zeros(size, 1, 2, 2), targets, torch.arange(size), None), Outputs(logits), None)


def pass_with_differences(differences: Sequence[float]) -> ForwardPass:
    """Two classes, all labelled 0: d = 2 p - 1."""
    p = ((torch.tensor(differences) + 1) / 2).clamp(1e-9, 1 - 1e-9)
    return forward_pass(torch.stack([p.log(), (1 - p).log()], 1), torch.zeros(len(p), dtype=torch.int64))


# --- the difference


def test_known_differences() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(3, 3)
    result = probability_difference(logits, torch.tensor([0, 1, 2]))
    assert torch.allclose(result, torch.tensor([0.5, -0.5, -0.6]))
    certain_logits = torch.tensor([[500.0, 0.0, 0.0]]).expand(3, 3)
    assert probability_difference(certain_logits, torch.tensor([0, 1, 2])).tolist() == [1, -1, -1]
    two_class_logits = torch.randn(9, 2)
    assert torch.allclose(
        probability_difference(two_class_logits, torch.ones(9).long()),
        2 * two_class_logits.softmax(1)[:, 1] - 1,
        atol=1e-6,
    )


def test_difference_equals_plain_loops() -> None:
    logits, targets = 3 * torch.randn(20, 7).double(), torch.randint(7, (20,))
    probabilities = logits.softmax(1).tolist()
    expected = [
        row[label] - max(p for k, p in enumerate(row) if k != label)
        for row, label in zip(probabilities, targets.tolist(), strict=True)
    ]
    assert torch.allclose(probability_difference(logits, targets), torch.tensor(expected).double(), atol=1e-12)


def test_weights_have_no_gradient() -> None:
    assert not probability_difference(torch.randn(3, 4, requires_grad=True), torch.arange(3)).requires_grad


def test_bins() -> None:
    values = torch.tensor([-1.0, -0.995, -0.9, 0.0, 0.5, 0.99, 1.0])
    assert bin_of(values).tolist() == [10, 10, 20, 110, 160, 209, 210]
    hostile = bin_of(torch.tensor([float("nan"), float("inf"), float("-inf")]))
    assert ((hostile >= 0) & (hostile <= 220)).all()


# --- the threshold


def test_exactly_the_low_group_is_omitted() -> None:
    sample = pass_with_differences([-0.9] * 3 + [0.9] * 7)
    with_known_rate = ProbabilityDifference(10, steps=4, epochs=4, noise_rate=0.3, ramp=2, window=4)
    auto = ProbabilityDifference(10, steps=4, epochs=4, ramp=2, window=4)
    for step in range(16):
        for weighting in (with_known_rate, auto):
            weights = weighting(sample, step / 16)
        if step + 1 >= 8:  # the ramp is over
            assert with_known_rate.weights.tolist() == auto.weights.tolist() == [0] * 3 + [1] * 7
    assert float(auto.rate) == pytest.approx(0.3)
    assert weights is auto.weights
    assert torch.equal(auto.index, sample.batch.index)


def test_ties_at_threshold_are_selected() -> None:
    weighting = ProbabilityDifference(4, steps=1, epochs=4, noise_rate=0.5, ramp=1, window=1)
    weighting(pass_with_differences([1.0] * 4), 0.0)
    assert weighting(pass_with_differences([1.0] * 4), 0.25).tolist() == [1] * 4


class ByHand:
    """The authors' layer in plain loops and float64: a queue of bins, its counts, and the rate."""

    def __init__(self, batch: int, steps: int, ramp: int, window: int, tau: float | None, zeta: float) -> None:
        self.queue: deque[int] = deque(maxlen=window * batch)
        self.full, self.steps, self.ramp, self.tau, self.zeta = window, steps, ramp, tau, zeta
        self.iteration, self.rate = 0, 0.0

    def __call__(self, differences: list[float], labels: list[int]) -> list[float]:
        bins = [-1 if y < 0 else int(100 * d + 110) for d, y in zip(differences, labels, strict=True)]
        self.queue.extend(bins)
        self.iteration += 1
        epoch = self.iteration // self.steps
        if self.iteration < self.full:
            return [1.0] * len(bins)
        labelled_bins = [b for b in self.queue if b >= 0]
        pcf = [sum(b <= k for b in labelled_bins) / max(len(labelled_bins), 1) for k in range(221)]
        if self.tau is not None:
            self.rate = self.tau * min(1, epoch / self.ramp)
        else:
            mean = sum(abs(-1.1 + 0.01 * (b + 0.5)) for b in labelled_bins) / max(len(labelled_bins), 1)
            if epoch <= self.ramp or mean < self.zeta:
                self.rate = pcf[10 + 100 * min(epoch, self.ramp) // self.ramp]
        line = next((k for k in range(221) if pcf[k] > self.rate), 221)
        return [float(b >= line) for b in bins]


@pytest.mark.parametrize("noise_rate", [0.8, None])
def test_training_equals_plain_loops(noise_rate: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    batch, steps, epochs, window = 6, 5, 12, 7
    weighting = ProbabilityDifference(
        batch, steps, epochs, noise_rate=noise_rate, ramp=3, window=window, saturation=0.8
    )
    expected = ByHand(batch, steps, ramp=3, window=window, tau=noise_rate, zeta=0.8)
    rates, omitted_count = [], 0
    for step in range(steps * epochs):
        sharp = 12 if step < 50 else 1  # saturated, then not
        logits = sharp * torch.randn(batch, 4, generator=generator)
        targets = torch.randint(-1, 4, (batch,), generator=generator)
        weights = weighting(forward_pass(logits, targets), step / (steps * epochs))
        differences = probability_difference(logits, targets).tolist()
        has_label = targets >= 0
        assert weights[has_label].tolist() == torch.tensor(expected(differences, targets.tolist()))[has_label].tolist()
        assert float(weighting.rate) == pytest.approx(expected.rate)
        rates.append(expected.rate)
        omitted_count += int((weights[has_label] == 0).sum())
    assert omitted_count > 20
    if noise_rate is None:  # frozen while the network is confident, then changing again
        assert len(set(rates[25:48])) < 5
        assert len(set(rates[54:])) > 3


def test_window_is_bounded_by_ramp() -> None:
    assert ProbabilityDifference(8, steps=5, epochs=40, ramp=4).ring.shape == (20, 8)
    assert ProbabilityDifference(8, steps=5, epochs=2).ring.shape == (10, 8)
    assert ProbabilityDifference(8, steps=500, epochs=40).ring.shape == (100, 8)


def test_processes_use_the_same_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"noise_rate": 0.4, "ramp": 1, "window": 3, "mean_over": "selected"}
    single_process = ProbabilityDifference(8, 2, 4, **settings)
    two_class_logits = [ProbabilityDifference(8, 2, 4, **settings) for _ in range(2)]
    for step in range(8):
        logits, targets = torch.randn(8, 3), torch.randint(3, (8,))
        all_weights = single_process(forward_pass(logits, targets), step / 8)
        shares = [forward_pass(logits[rank::2], targets[rank::2]) for rank in range(2)]
        all_bins = torch.cat([bin_of(probability_difference(s.student["logits"], s.batch.targets)) for s in shares])
        monkeypatch.setattr(pdiff, "gathered", lambda _own, all_bins=all_bins: all_bins)
        parts = [weighting(share, step / 8) for weighting, share in zip(two_class_logits, shares, strict=True)]
        assert torch.allclose(torch.stack(parts, 1).flatten(), all_weights)
        monkeypatch.undo()
    assert torch.equal(two_class_logits[0].ring, two_class_logits[1].ring)


class _NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails if a value is read from the device or a shape depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "bincount", "is_nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("noise_rate", [0.3, None])
def test_never_waits_for_the_device(noise_rate: float | None) -> None:
    weighting = ProbabilityDifference(4, 2, 6, noise_rate=noise_rate, window=2, mean_over="selected")
    for step in range(12):
        sample = forward_pass(torch.randn(4, 3), torch.randint(-1, 3, (4,)))
        with _NoWaiting():  # type: ignore[no-untyped-call]
            weighting(sample, step / 12)


def test_state_can_be_restored() -> None:
    passes = [forward_pass(8 * torch.randn(4, 3), torch.randint(3, (4,))) for _ in range(12)]
    weighting = ProbabilityDifference(4, 2, 6, window=3)
    weights = [weighting(sample, step / 12) for step, sample in enumerate(passes)]
    original, later = (ProbabilityDifference(4, 2, 6, window=3) for _ in range(2))
    for step in range(8):
        original(passes[step], step / 12)
    later.load_state_dict(original.state_dict())
    for step in range(8, 12):
        assert torch.equal(later(passes[step], step / 12), weights[step])


# --- in a learner


def loss_of(learner: Learner, sample: ForwardPass, progress: float) -> Tensor:
    total, _ = learner.loss({None: sample}, progress)
    return total


@pytest.mark.parametrize("mean_over", ["batch", "selected"])
def test_gradient_of_selected_samples(mean_over: Any, tiny_model: Callable[..., Tapped]) -> None:
    logits = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]], requires_grad=True)
    sample = forward_pass(logits, torch.tensor([0, 1, 2, 1]))
    weighting = ProbabilityDifference(4, 1, 4, noise_rate=0.25, ramp=1, window=1, mean_over=mean_over)
    learner = Learner(tiny_model(), None, {"ce": CrossEntropy()}, sample_weight=weighting)
    (gradient,) = torch.autograd.grad(loss_of(learner, sample, 0.25), logits)
    ordinary = (logits.softmax(1) - torch.eye(3)[sample.batch.targets]) / (4 if mean_over == "batch" else 3)
    assert weighting.weights.bool().tolist() == [True, True, True, False]
    assert torch.equal(gradient[3], torch.zeros(3))
    assert torch.allclose(gradient[:3], ordinary[:3])


def test_term_for_all_samples_is_not_weighted(tiny_model: Callable[..., Tapped]) -> None:
    logits = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]], requires_grad=True)
    teacher, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    sample = replace(forward_pass(logits, targets), teacher=Outputs(teacher))

    def gradient(kd: Term | Weighted, weighting: ProbabilityDifference | None) -> Tensor:
        terms = {"ce": CrossEntropy(), "kd": kd} if weighting else {"kd": kd}
        learner = Learner(tiny_model(), Frozen(tiny_model()), terms, sample_weight=weighting)
        return torch.autograd.grad(loss_of(learner, sample, 0.25), logits)[0]

    def weighting() -> ProbabilityDifference:
        return ProbabilityDifference(4, 1, 4, noise_rate=0.25, ramp=1, window=1)

    kd = SoftTargets(2.0)
    assert torch.equal(gradient(kd, weighting())[3], torch.zeros(3))  # omitted, with its soft targets
    torch.testing.assert_close(gradient(kd.for_all_samples(), weighting())[3], gradient(kd, None)[3])
    assert gradient(kd, None)[3].abs().max() > 0.01


def test_gradient_before_window_is_full(tiny_model: Callable[..., Tapped]) -> None:
    weighting = ProbabilityDifference(4, 5, 10, noise_rate=0.5, ramp=5, window=10)
    weighted_learner = Learner(tiny_model(), None, {"ce": CrossEntropy()}, sample_weight=weighting)
    plain = Learner(tiny_model(), None, {"ce": CrossEntropy()})
    for step in range(9):
        logits = torch.randn(4, 3, requires_grad=True)
        sample = forward_pass(logits, torch.randint(3, (4,)))
        weighted_gradient, plain_gradient = (
            torch.autograd.grad(loss_of(x, sample, step / 50), logits)[0] for x in (weighted_learner, plain)
        )
        assert torch.equal(weighted_gradient, plain_gradient)


def test_noise_rate_zero_equals_plain(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    labels = tiny_data.train.labels.clone()
    labels[::5] = -1
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))

    def train(name: str, **settings: Any) -> dict[str, Tensor]:
        run = Run(data, lambda: tiny_model(2), recipe=Recipe(epochs=3, batch_size=16, lr=0.05), hardware=on_cpu)
        return state_of(find(name)(run, **settings))  # type: ignore[no-any-return]

    plain = train("plain")
    assert changed(train("pdiff", noise_rate=0), plain) == set()
    assert changed(train("pdiff", noise_rate=0.4), plain)


def test_wrong_labels_are_detected(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> None:
    labels = tiny_data.train.labels.clone()
    labels[::5] = (labels[::5] + torch.randint(1, 4, (10,), generator=torch.Generator().manual_seed(1))) % 4
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))
    model = tiny_model(2, width=8)
    weighting = ProbabilityDifference(48, 1, 30, noise_rate=0.2)
    run = Run(data, lambda: model, recipe=Recipe(epochs=30, batch_size=48, lr=0.1), hardware=on_cpu)
    run.fit(Learner(model, None, {"ce": CrossEntropy()}, sample_weight=weighting))
    is_wrong = data.train.corrupted[weighting.index]
    assert is_wrong[weighting.weights == 0].float().mean() > 0.8
    assert is_wrong[weighting.weights == 1].float().mean() < 0.1


# --- errors


def test_soft_labels_are_refused(soft: Data, tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("P-DIFF", "labels are soft"):
        find("pdiff")(Run(soft, tiny_model))


@pytest.mark.parametrize(
    "settings", [{"noise_rate": 1}, {"noise_rate": -0.1}, {"ramp": 0}, {"window": 0}, {"mean_over": "all"}]
)
def test_invalid_settings_are_refused(
    settings: dict[str, Any], tiny_data: Data, tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("pdiff")(Run(tiny_data, tiny_model), **settings)
