"""Boundary supporting samples: the batch that the view makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attacks.boundary import attack_by_loops, selected_by_loops
from tutelage.attacks import BoundarySamples
from tutelage.data.batch import Batch, hard_labels
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import View
from tutelage.training.learner import ForwardPass

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
