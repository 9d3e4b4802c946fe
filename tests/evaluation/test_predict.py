"""Prediction: order, batch sizes, unchanged model, precision and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.evaluation.predict import predict, predict_roles
from tutelage.models.tapped import Tapped


def part(samples: int = 11) -> Split:
    images = torch.randint(256, (samples, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Split.of(images, torch.arange(samples) % 3)


def network() -> nn.Sequential:
    """A network with batch norm and dropout, whose outputs in train mode depend on the batch and are random."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 3))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class Fails(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("broken")


class Answers(nn.Module):
    """A network with a constant output."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, inputs: Tensor) -> object:
        return self.answer


class Poisoned(nn.Module):
    """A network whose output is non-finite for images with a white first pixel."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        bad = inputs[:, 0, 0, 0] == 1
        return torch.zeros(len(inputs), 3).masked_fill(bad[:, None], self.value)


def test_predictions_equal_the_model_in_eval_mode() -> None:
    split, model = part(), network()
    pixels = split.inputs[torch.arange(len(split))].permute(0, 3, 1, 2).float() / 255
    logits = predict(model, split, device="cpu")
    assert logits.shape == (11, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.eval()(pixels).detach())


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 12])
def test_predictions_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    split, model = part(), network()
    torch.testing.assert_close(
        predict(model, split, device="cpu", batch_size=batch_size), predict(model, split, device="cpu")
    )


@pytest.mark.parametrize("fails", [False, True])
def test_mode_of_each_submodule_is_restored(fails: bool) -> None:
    model = network()
    if fails:
        model.append(Fails())
    model.train()
    model[1].eval()
    before = modes(model)
    assert len(set(before)) == 2
    statistics = model[1].running_mean.clone()
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            predict(model, part(), device="cpu")
    else:
        predict(model, part(), device="cpu")
    assert modes(model) == before
    assert torch.equal(model[1].running_mean, statistics)


def test_batch_statistics_and_generator_are_unchanged() -> None:
    model = network().train()
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    predict(model, part(), device="cpu")
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_predictions_can_be_targets_in_a_loss() -> None:
    logits = predict(network(), part(), device="cpu")
    assert not logits.requires_grad
    student = torch.zeros_like(logits, requires_grad=True)
    (student.exp() * logits).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, logits)


def test_amp_computes_in_lower_precision_and_returns_float32() -> None:
    model, split = network(), part()
    full, low = predict(model, split, device="cpu"), predict(model, split, device="cpu", amp=torch.bfloat16)
    assert low.dtype == torch.float32
    assert not torch.equal(full, low)
    torch.testing.assert_close(full, low, atol=0.05, rtol=0.05)


def test_outer_autocast_is_disabled_without_amp() -> None:
    model, split = network(), part()
    full = predict(model, split, device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(model, split, device="cpu"), full)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("batch_size", [2, 512])
def test_non_finite_logits_are_refused(value: float, batch_size: int) -> None:
    split = part()
    images = torch.zeros(11, 4, 5, 3, dtype=torch.uint8)
    images[[3, 8]] = 255
    split = Split.of(images, split.labels).subset(torch.arange(10, 1, -1))
    with pytest.raises(NonFiniteError, match=r"2 of 9 samples, first for sample 8.*learning rate"):
        predict(Poisoned(value), split, device="cpu", batch_size=batch_size)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(11), r"a tensor of shape \(11,\)"),
        (torch.zeros(1, 3), r"a tensor of shape \(1, 3\)"),
        ((torch.zeros(11, 3),), "a tuple"),
    ],
)
def test_outputs_that_are_not_logits_are_refused(answer: object, words: str) -> None:
    with pytest.raises(TutelageError, match=f"returns {words} for a batch of 11.*returns logits"):
        predict(Answers(answer), part(), device="cpu")


def test_empty_split_is_refused() -> None:
    with pytest.raises(TutelageError, match="empty"):
        predict(network(), part().subset(torch.arange(0)), device="cpu")


def test_outputs_of_roles_are_concatenated() -> None:
    """A network not traced before is evaluated in eval mode over several batches; its train mode is restored."""
    model = Tapped(network(), roles={"hidden": "3"}).train()
    split = part(600)
    outputs = predict_roles(model, split, ("hidden", "logits"), device="cpu")
    assert model.training
    assert torch.equal(outputs[:, 24:], predict(model, split, device="cpu"))
    assert isinstance(split.inputs, Tensor)
    hidden = model.eval().module[:4](split.inputs.permute(0, 3, 1, 2) / 255)  # type: ignore[index]
    torch.testing.assert_close(outputs[:, :24], hidden)
    with pytest.raises(TutelageError, match="no role 'abstain'"):
        predict_roles(model, split, ("abstain",), device="cpu")
    with pytest.raises(TutelageError, match="the split is empty"):
        predict_roles(model, split.subset(torch.arange(0)), ("hidden",), device="cpu")
