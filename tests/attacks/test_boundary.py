"""Boundary supporting samples: the attack, the selection of samples, and the resulting batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import Tensor, nn

from tutelage.attacks import BoundarySamples, boundary_attack, draw_targets
from tutelage.attacks.boundary import Norm, select_samples
from tutelage.data.batch import Batch, hard_labels
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import View
from tutelage.training.learner import ForwardPass

EPS = 1e-4  # the authors' overshoot
ETA = 0.3


def two_planes(length: float) -> Callable[[Tensor], Tensor]:
    """f(x) = (w x, 0) with ||w|| = length, along no axis: its boundary is the plane w x = 0."""
    w = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * length
    return lambda x: torch.stack([x @ w, torch.zeros(len(x), dtype=x.dtype)], 1)


def at_gap(gap: float, length: float) -> Tensor:
    """(1, 3), an input whose first logit is ``gap`` above the other."""
    return torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64) * gap / length


BASE, TARGET = torch.tensor([0]), torch.tensor([1])


def mlp(classes: int = 4, features: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def attack_by_loops(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    base: Tensor,
    target: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
    norm: str,
) -> Tensor:
    """The paper's algorithm in plain loops, one sample after another."""
    ends = []
    for x, b, k in zip(inputs, base.tolist(), target.tolist(), strict=True):
        for _ in range(steps):
            logits = network(x[None])[0].detach()
            if int(logits.argmax()) != b:
                break
            jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None])[0], x)  # type: ignore[no-untyped-call]
            gradient = (jacobian[b] - jacobian[k]).flatten().tolist()
            length = math.sqrt(sum(g * g for g in gradient))
            divisor = length if norm == "first" else length**2
            gap = float(logits[b] - logits[k])
            flat, lows, highs = x.flatten().tolist(), low.expand_as(x).flatten(), high.expand_as(x).flatten()
            x = torch.tensor(  # noqa: PLW2901
                [
                    min(max(value - ETA * (gap + EPS) * g / divisor, float(lowest)), float(highest))
                    for value, g, lowest, highest in zip(flat, gradient, lows, highs, strict=True)
                ],
                dtype=x.dtype,
            ).view_as(x)
        ends.append(x)
    return torch.stack(ends).detach()


# --- the attack


@pytest.mark.parametrize(("steps", "gap"), [(1, 0.79994), (2, 0.319916)])
def test_first_norm_step_on_linear_teacher(steps: int, gap: float) -> None:
    """(1 - eta ||w||)^i (L_0 + eps) - eps, with L_0 = 2, ||w|| = 2."""
    network = two_planes(2.0)
    attack_points = boundary_attack(network, at_gap(2.0, 2.0), BASE, TARGET, steps=steps)
    frequencies = float(network(attack_points)[0, 0])
    assert frequencies == pytest.approx(gap, rel=1e-5)
    assert frequencies == pytest.approx(0.4**steps * (2 + EPS) - EPS, rel=1e-9)


@pytest.mark.parametrize("length", [0.1, 2.0, 50.0])
def test_squared_norm_step_on_linear_teacher_is_scale_invariant(length: float) -> None:
    """(1 - eta)^i (L_0 + eps) - eps: ten steps do not cross from L_0 = 2."""
    network = two_planes(length)
    attack_points = boundary_attack(network, at_gap(2.0, length), BASE, TARGET, norm="squared")
    gap = float(network(attack_points)[0, 0])
    assert gap == pytest.approx(0.0563979, rel=1e-6)
    assert gap == pytest.approx(0.7**10 * (2 + EPS) - EPS, rel=1e-9)
    # only along the gradient
    torch.testing.assert_close(attack_points, at_gap(gap, length))


@pytest.mark.parametrize(
    ("norm", "length", "crossing"), [("squared", 2.0, 28), ("squared", 7.0, 28), ("first", 2.0, 11)]
)
def test_sample_stops_after_crossing_the_boundary(norm: Norm, length: float, crossing: int) -> None:
    network = two_planes(length)

    def attack(steps: int) -> Tensor:
        return boundary_attack(network, at_gap(2.0, length), BASE, TARGET, steps=steps, norm=norm)

    assert int(network(attack(crossing - 1)).argmax()) == 0
    assert int(network(attack(crossing)).argmax()) == 1
    assert torch.equal(attack(crossing), attack(crossing + 60))
    assert not torch.equal(attack(crossing - 1), attack(crossing))


def test_network_is_not_run_after_all_samples_crossed() -> None:
    calls: list[int] = []
    plane = two_planes(2.0)

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        return plane(x)

    boundary_attack(network, at_gap(2.0, 2.0), BASE, TARGET, steps=500)
    assert len(calls) == 12  # eleven steps, and one pass that detects that all have crossed


def test_a_sample_of_another_class_is_not_moved() -> None:
    network = mlp()
    inputs = torch.randn(40, 5, dtype=torch.float64)
    predictions = network(inputs).argmax(1)
    base, target = predictions.clone(), (predictions + 1) % 4
    base[::2] = (predictions[::2] + 2) % 4  # the network predicts another class for these
    attack_points = boundary_attack(network, inputs, base, target)
    is_unmoved = (attack_points == inputs).all(1)
    assert is_unmoved[::2].all()
    assert not is_unmoved[1::2].any()


@pytest.mark.parametrize("norm", ["first", "squared"])
@pytest.mark.parametrize("steps", [1, 10, 60])
def test_attack_equals_plain_loops_per_sample(norm: Norm, steps: int) -> None:
    network = mlp()
    inputs = torch.randn(24, 5, dtype=torch.float64)
    base = network(inputs).argmax(1)
    target = (base + torch.randint(1, 4, (24,))) % 4
    low, high = torch.linspace(-3, -1, 5).double(), torch.linspace(1, 2, 5).double()
    inputs = inputs.clamp(low, high)
    base = network(inputs).argmax(1)
    target = torch.where(target == base, (base + 1) % 4, target)
    attack_points = boundary_attack(network, inputs, base, target, low=low, high=high, steps=steps, norm=norm)
    expected = attack_by_loops(network, inputs, base, target, low, high, steps, norm)
    torch.testing.assert_close(attack_points, expected, rtol=1e-8, atol=1e-8)
    if steps == 60:
        after = network(attack_points).argmax(1)
        assert int((after != base).sum()) > 0
        assert ((attack_points == low) | (attack_points == high)).any()


def test_images_are_moved_like_flat_inputs() -> None:
    """The gradient norm is over all axes of a sample."""
    network = mlp(features=12)
    inputs = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    base = network(inputs.flatten(1)).argmax(1)
    target = (base + 1) % 4
    attack_points = boundary_attack(lambda x: network(x.flatten(1)), inputs, base, target)
    assert torch.equal(attack_points.flatten(1), boundary_attack(network, inputs.flatten(1), base, target))


@pytest.mark.parametrize("norm", ["first", "squared"])
def test_zero_gradient_moves_nothing(norm: Norm) -> None:
    def network(x: Tensor) -> Tensor:  # flat where the first input is negative
        slope = x[:, :1].clamp(min=0)
        return torch.cat([1 + slope, 0 * slope], 1)

    inputs = torch.tensor([[-1.0, 2.0], [1.0, 2.0]])
    attack_points = boundary_attack(network, inputs, torch.zeros(2).long(), torch.ones(2).long(), norm=norm)
    assert torch.equal(attack_points[0], inputs[0])
    assert torch.isfinite(attack_points).all()
    assert attack_points[1, 0] < 1


def test_inputs_and_network_do_not_change() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    inputs = torch.rand(9, 1, 6, 6).requires_grad_()
    original = inputs.detach().clone()
    base = network(inputs).argmax(1)
    with torch.no_grad():  # as in the dry run
        attack_points = boundary_attack(network, inputs, base, (base + 1) % 3)
    assert not torch.equal(attack_points, original)
    assert not attack_points.requires_grad
    assert attack_points.grad_fn is None
    assert torch.equal(inputs, original)
    assert inputs.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 1).all()) for p in network.parameters())


@pytest.mark.parametrize(("norm", "step_size", "steps"), [("squared", ETA, 10), ("first", 0.05, 10)])
def test_points_of_two_moons_reach_the_boundary(norm: Norm, step_size: float, steps: int) -> None:
    """The gradient norm is 10 to 30 here: steps with norm=first and 0.3 would overshoot the boundary."""
    points, labels = make_moons(400, noise=0.1, random_state=0)
    x, y = torch.tensor(points), torch.tensor(labels).long()
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)).double()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    correct = teacher(x).argmax(1) == y
    assert correct.double().mean() > 0.97
    x, y = x[correct], y[correct]
    attack_points = boundary_attack(teacher, x, y, 1 - y, steps=steps, step_size=step_size, norm=norm)
    with torch.no_grad():
        start, end = ((z[:, 0] - z[:, 1]).abs() for z in (teacher(x), teacher(attack_points)))
    assert (end < start).double().mean() >= 0.9
    assert (end / start).median() < 0.1


# --- target classes


def test_targets_are_drawn_by_teacher_probabilities() -> None:
    q = torch.tensor([0.2, 0.5, 0.1, 0.2])
    targets = draw_targets(q.log().expand(100_000, 4), torch.ones(100_000).long())
    gap = targets.bincount(minlength=4) / 100_000
    torch.testing.assert_close(gap, torch.tensor([0.4, 0.0, 0.2, 0.4]), rtol=0, atol=0.01)
    torch.testing.assert_close(gap, torch.tensor([0.4, 0.0, 0.2, 0.4]), rtol=0.02, atol=0)


@pytest.mark.parametrize("confidence", [40.0, 1e4, 3e38])
def test_base_class_is_never_drawn(confidence: float) -> None:
    logits = torch.tensor([0.0, confidence, 1.0])
    assert float(logits.softmax(0)[1]) == 1.0
    targets = draw_targets(logits.expand(100_000, 3), torch.ones(100_000).long())
    gap = targets.bincount(minlength=3) / 100_000
    expected = 1 / (1 + math.e)
    torch.testing.assert_close(gap, torch.tensor([expected, 0.0, 1 - expected]), rtol=0, atol=0.01)


def test_target_of_two_classes_is_the_other() -> None:
    base = torch.tensor([0, 1, 1, 0])
    assert torch.equal(draw_targets(torch.randn(4, 2) * 50, base), 1 - base)


def test_targets_are_drawn_per_sample() -> None:
    logits = torch.full((50, 6), -1e4)
    base, other = torch.arange(50) % 6, (torch.arange(50) + 2) % 6
    logits[torch.arange(50), base], logits[torch.arange(50), other] = 5.0, 0.0
    assert torch.equal(draw_targets(logits.requires_grad_(), base), other)


# --- selection of samples


def selected_by_loops(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> list[int]:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value - max(row)) for value in row]
        return [power / sum(powers) for power in powers]

    scores = []
    for n, (s, t, b) in enumerate(zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)):
        if s.index(max(s)) == b and t.index(max(t)) == b:
            q_s, q_t = softmax(s), softmax(t)
            scores.append((sum((q_t[c] - q_s[c]) ** 2 for c in range(len(s)) if c != b), n))
    return [n for _, n in sorted(scores, reverse=True)[:count]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 5, 16, 64])
def test_correct_samples_with_largest_disagreement_are_selected(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    student, teacher, labels = 2 * torch.randn(64, 4), 2 * torch.randn(64, 4), torch.randint(4, (64,))
    for logits in (student, teacher):
        logits[torch.arange(64), labels] += 2
    labels[:8] = -1
    expected = selected_by_loops(student, teacher, labels, count)
    indices, _, counts = select_samples(student, teacher, labels, count)
    assert indices.shape == counts.shape == (count,)
    assert indices[counts].tolist() == expected
    assert counts.tolist() == [True] * len(expected) + [False] * (count - len(expected))
    assert set(indices.tolist()) <= set(expected)  # the repeated sample is one of them
    if count == 64:
        assert 8 < len(expected) < 56


@pytest.mark.parametrize("network", ["student", "teacher", "both", "nobody knows the label"])
def test_no_sample_counts_if_none_qualifies(network: str) -> None:
    correct_logits, labels = F.one_hot(torch.arange(6) % 3, 3).float(), torch.arange(6) % 3
    wrong_logits = correct_logits.roll(1, dims=1)
    student = wrong_logits if network in ("student", "both") else correct_logits
    teacher = wrong_logits if network in ("teacher", "both") else correct_logits
    if network == "nobody knows the label":
        labels = torch.full((6,), -1)
    indices, _, counts = select_samples(student, teacher, labels, 4)
    assert not counts.any()
    assert ((indices >= 0) & (indices < 6)).all()


def test_single_qualifying_sample_is_repeated_and_counts_once() -> None:
    correct, labels = F.one_hot(torch.arange(6) % 3, 3).float(), torch.arange(6) % 3
    teacher = correct.roll(1, dims=1)
    teacher[4] = correct[4]
    indices, _, counts = select_samples(correct, teacher, labels, 3)
    assert indices.tolist() == [4, 4, 4]
    assert counts.tolist() == [True, False, False]


# --- the batch


MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.25, 0.4)


def as_batch(inputs: Tensor, targets: Tensor) -> Batch:
    index = torch.arange(len(inputs))
    return Batch(inputs, targets, 100 + index, torch.stack([100 + index, index % 5], 1))


@pytest.fixture
def teacher() -> Tapped:
    """An MLP over twelve pixels of three channels that are normalised differently, for three classes."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    return Tapped(module, MEAN, STD).eval().requires_grad_(False)


@pytest.fixture
def labelled_batch(teacher: Tapped) -> tuple[Batch, Outputs]:
    """Sixteen images that the teacher classifies correctly, and its outputs."""
    inputs = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    outputs = teacher.tap(inputs)
    return as_batch(inputs, outputs["logits"].argmax(1)), outputs


def agreeing_outputs(batch: Batch, where: list[int]) -> Outputs:
    """The outputs of a student that classifies exactly these correctly."""
    labels = hard_labels(batch.targets)
    logits = F.one_hot(labels, 3).float()
    wrong = [n for n in range(len(batch)) if n not in where]
    logits[wrong] = logits[wrong].roll(1, dims=1)
    return Outputs(logits)


EVERY = list(range(16))


def test_boundary_samples_equal_plain_loops_in_normalised_space(
    teacher: Tapped, labelled_batch: tuple[Batch, Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, outputs = labelled_batch
    draws: list[tuple[Tensor, Tensor]] = []

    def towards(logits: Tensor, base: Tensor) -> Tensor:
        draws.append((logits, base))
        return (base + 1) % 3

    monkeypatch.setattr("tutelage.attacks.boundary.draw_targets", towards)
    student = agreeing_outputs(batch, EVERY)
    boundary_batch = BoundarySamples(teacher, share=0.5)(batch, student, outputs)
    indices = (boundary_batch.index - 100).tolist()
    assert indices == selected_by_loops(student["logits"], outputs["logits"], batch.targets, 8)
    assert torch.equal(boundary_batch.targets, batch.targets[indices])
    assert boundary_batch.key is None  # not an augmentation of the data set
    ((logits, base),) = draws
    assert torch.equal(logits, outputs["logits"][indices])
    assert torch.equal(base, batch.targets[indices])
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (MEAN, STD))
    module = copy.deepcopy(teacher.module).double()
    images = (batch.inputs[indices].double() - mean) / std
    expected = attack_by_loops(module, images, base, (base + 1) % 3, (0 - mean) / std, (1 - mean) / std, 10, "first")
    torch.testing.assert_close(boundary_batch.inputs.double(), expected * std + mean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(boundary_batch.inputs, batch.inputs[indices], atol=1e-2)


def test_moved_images_stay_in_pixel_range_in_every_channel(
    teacher: Tapped, labelled_batch: tuple[Batch, Outputs]
) -> None:
    batch, outputs = labelled_batch
    boundary_batch = BoundarySamples(teacher, share=1.0, step_size=50.0)(batch, agreeing_outputs(batch, EVERY), outputs)
    for channel in range(3):
        assert float(boundary_batch.inputs[:, channel].min()) == pytest.approx(0, abs=1e-6)
        assert float(boundary_batch.inputs[:, channel].max()) == pytest.approx(1, abs=1e-6)
    assert float(boundary_batch.inputs.min()) >= 0
    assert float(boundary_batch.inputs.max()) <= 1


def test_clamping_uses_bounds_of_each_channel() -> None:
    low, high = torch.tensor([-2.0, -0.5, -1.75]).view(3, 1, 1), torch.tensor([8.0, 2.0, 0.75]).view(3, 1, 1)
    rows = torch.stack([torch.ones(12), -torch.ones(12)])
    inputs = torch.full((1, 3, 2, 2), 0.5)
    down = boundary_attack(lambda x: x.flatten(1) @ rows.T, inputs, BASE, TARGET, low=low, high=high, step_size=100.0)
    assert torch.equal(down, low.expand(1, 3, 2, 2))
    shifted_points = boundary_attack(
        lambda x: 20 - x.flatten(1) @ rows.T, inputs, BASE, TARGET, low=low, high=high, step_size=0.5, steps=1
    )
    assert torch.equal(shifted_points, inputs)  # which predicts the other class already
    shifted_points = boundary_attack(
        lambda x: x.flatten(1) @ rows.T, -inputs, TARGET, BASE, low=low, high=high, step_size=100.0
    )
    assert torch.equal(shifted_points, high.expand(1, 3, 2, 2))


@pytest.mark.parametrize("fitting", [1, 2, 3, 8, 11, 16])
def test_mean_of_batch_is_over_counted_samples(
    fitting: int, teacher: Tapped, labelled_batch: tuple[Batch, Outputs]
) -> None:
    batch, outputs = labelled_batch
    boundary_batch = BoundarySamples(teacher, share=0.5)(batch, agreeing_outputs(batch, EVERY[:fitting]), outputs)
    assert len(boundary_batch) == len(boundary_batch.inputs) == 8
    assert boundary_batch.weight is not None
    assert boundary_batch.weight.dtype == torch.float32
    counted_samples = (boundary_batch.index - 100)[boundary_batch.weight > 0].tolist()
    assert len(counted_samples) == len(set(counted_samples)) == min(fitting, 8)
    assert set(counted_samples) <= set(EVERY[:fitting])
    value = torch.rand(8)
    mean = sum(value[boundary_batch.weight > 0].tolist()) / min(fitting, 8)
    assert float((boundary_batch.weight * value).mean()) == pytest.approx(mean, rel=1e-6)


def test_loss_and_gradient_are_zero_without_boundary_samples(
    teacher: Tapped, labelled_batch: tuple[Batch, Outputs]
) -> None:
    from tutelage.sources import Frozen
    from tutelage.terms import SoftTargets
    from tutelage.training import Learner

    batch, outputs = labelled_batch
    student = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    view = BoundarySamples(teacher, share=0.25)
    boundary_batch = view(batch, agreeing_outputs(batch, []), outputs)
    assert boundary_batch.weight is not None
    assert boundary_batch.weight.tolist() == [0.0] * 4
    learner = Learner(student, Frozen(teacher), {"boundary": SoftTargets(3.0).on(view)})
    passes: dict[View | None, ForwardPass] = {
        None: ForwardPass(batch, student.tap(batch.inputs), outputs),
        view: ForwardPass(boundary_batch, student.tap(boundary_batch.inputs), teacher.tap(boundary_batch.inputs)),
    }
    total, values = learner.loss(passes, 0.0)
    assert total.item() == 0
    assert values.tolist() == [0.0]
    total.backward()  # type: ignore[no-untyped-call]
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad == 0).all())


def test_samples_update_statistics_by_default(teacher: Tapped) -> None:
    assert BoundarySamples(teacher).updates_statistics
    assert not BoundarySamples(teacher, updates_statistics=False).updates_statistics


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.25, 4), (0.3, 5), (1.0, 16)])
def test_number_of_samples_is_a_share_of_the_batch(
    share: float, count: int, teacher: Tapped, labelled_batch: tuple[Batch, Outputs]
) -> None:
    batch, outputs = labelled_batch
    assert len(BoundarySamples(teacher, share)(batch, agreeing_outputs(batch, EVERY), outputs)) == count


def test_samples_misclassified_by_teacher_are_never_selected(
    teacher: Tapped, labelled_batch: tuple[Batch, Outputs]
) -> None:
    batch, outputs = labelled_batch
    labels = batch.targets.clone()
    labels[:12] = (labels[:12] + 1) % 3
    relabelled_batch = as_batch(batch.inputs, labels)
    boundary_batch = BoundarySamples(teacher, share=0.5)(
        relabelled_batch, agreeing_outputs(relabelled_batch, EVERY), outputs
    )
    assert boundary_batch.weight is not None
    assert set((boundary_batch.index - 100).tolist()) == {12, 13, 14, 15}
    assert boundary_batch.weight.tolist() == [2.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("discard", [False, True])
def test_failed_attacks_do_not_count_with_discard_failed(discard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third class lies between the first and the second: samples with the second as target end in the third."""
    linear = nn.Linear(2, 3)
    linear.weight.data = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])
    linear.bias.data = torch.tensor([0.0, 0.0, 0.4])
    teacher = Tapped(nn.Sequential(nn.Flatten(), linear)).eval()
    aims = torch.tensor([1, 2, 1, 2, 2, 2])
    monkeypatch.setattr("tutelage.attacks.boundary.draw_targets", lambda logits, base: aims)
    inputs = torch.full((6, 1, 1, 2), 0.5)
    batch, student = as_batch(inputs, torch.zeros(6).long()), Outputs(torch.tensor([[1.0, 0.0, 0.0]] * 6))

    def weights(step_size: float) -> list[float]:
        view = BoundarySamples(teacher, share=1.0, steps=1, step_size=step_size, discard_failed=discard)
        boundary_batch = view(batch, student, teacher.tap(inputs))
        assert boundary_batch.index.tolist() == list(range(100, 106))
        predictions = teacher(boundary_batch.inputs).argmax(1).tolist()
        assert predictions == ([2] * 6 if step_size > 0.25 else [0] * 6)
        assert boundary_batch.weight is not None
        return boundary_batch.weight.tolist()

    assert weights(0.26) == ([0.0, 1.5, 0.0, 1.5, 1.5, 1.5] if discard else [1.0] * 6)
    assert weights(0.05) == ([0.0] * 6 if discard else [1.0] * 6)  # they still have their class


def test_soft_labels_count_as_argmax_and_are_returned(teacher: Tapped, labelled_batch: tuple[Batch, Outputs]) -> None:
    batch, outputs = labelled_batch
    soft = F.one_hot(batch.targets, 3).float() * 0.7 + 0.1
    soft_batch = as_batch(batch.inputs, soft)
    student = agreeing_outputs(batch, EVERY[:6])
    torch.manual_seed(0)
    hard = BoundarySamples(teacher, share=0.5)(batch, student, outputs)
    torch.manual_seed(0)
    boundary_batch = BoundarySamples(teacher, share=0.5)(soft_batch, student, outputs)
    assert torch.equal(boundary_batch.inputs, hard.inputs)
    assert torch.equal(boundary_batch.index, hard.index)
    assert boundary_batch.weight is not None
    assert hard.weight is not None
    assert torch.equal(boundary_batch.weight, hard.weight)
    assert torch.equal(boundary_batch.targets, soft[boundary_batch.index - 100])


def test_samples_without_a_label_never_count(teacher: Tapped, labelled_batch: tuple[Batch, Outputs]) -> None:
    batch, outputs = labelled_batch
    labels = batch.targets.clone()
    labels[3:] = -1
    boundary_batch = BoundarySamples(teacher, share=0.5)(
        as_batch(batch.inputs, labels), agreeing_outputs(batch, EVERY), outputs
    )
    assert boundary_batch.weight is not None
    assert sorted((boundary_batch.index - 100)[boundary_batch.weight > 0].tolist()) == [0, 1, 2]
    labels[:] = -1
    none = BoundarySamples(teacher, share=0.5)(as_batch(batch.inputs, labels), agreeing_outputs(batch, EVERY), outputs)
    assert none.weight is not None
    assert not none.weight.any()
    assert torch.isfinite(none.inputs).all()


def test_batch_and_teacher_do_not_change(trained_model: Callable[..., Tapped], state_of: Any, changed: Any) -> None:
    """A teacher with batch normalisation whose parameters would take gradients."""
    teacher = trained_model().requires_grad_()
    teacher.zero_grad()
    before, modes = state_of(teacher), [module.training for module in teacher.modules()]
    inputs = torch.rand(16, 1, 8, 8)
    outputs = teacher.tap(inputs)
    batch = as_batch(inputs.clone(), outputs["logits"].argmax(1))
    student = Outputs(F.one_hot(batch.targets, 4).float().requires_grad_())
    boundary_batch = BoundarySamples(teacher, share=0.5, discard_failed=True)(batch, student, outputs)
    assert not torch.equal(boundary_batch.inputs, inputs[boundary_batch.index - 100])
    assert torch.equal(batch.inputs, inputs)
    assert changed(before, state_of(teacher)) == set()
    assert modes == [module.training for module in teacher.modules()]
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert boundary_batch.weight is not None
    assert not any(
        tensor.requires_grad for tensor in (boundary_batch.inputs, boundary_batch.targets, boundary_batch.weight)
    )


def test_teacher_outputs_are_required(teacher: Tapped, labelled_batch: tuple[Batch, Outputs]) -> None:
    batch, outputs = labelled_batch
    with pytest.raises(TutelageError, match="needs a teacher's outputs"):
        BoundarySamples(teacher)(batch, outputs, None)


def test_unqualified_samples_do_not_count_after_a_successful_attack() -> None:
    linear = nn.Linear(1, 2)
    linear.weight.data, linear.bias.data = torch.tensor([[4.0], [0.0]]), torch.tensor([0.0, 1.0])
    teacher = Tapped(nn.Sequential(nn.Flatten(), linear)).eval()
    inputs = torch.tensor([0.9, 0.8, 0.7, 0.6]).view(4, 1, 1, 1)
    student = Outputs(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    view = BoundarySamples(teacher, share=1.0, discard_failed=True)
    boundary_batch = view(as_batch(inputs, torch.zeros(4).long()), student, teacher.tap(inputs))
    assert teacher(boundary_batch.inputs).argmax(1).tolist() == [1] * 4
    assert boundary_batch.index.tolist() == [100] * 4
    assert boundary_batch.weight is not None
    assert boundary_batch.weight.tolist() == [4.0, 0.0, 0.0, 0.0]
