"""Averaging gradients over processes in messages: what is averaged, and when messages are sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tutelage.training.gradient_messages import averaged_gradients


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """A process group of this process alone, in which a sum over processes changes nothing."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Messages(list[int]):
    """The number of values of each message."""


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Messages:
    sent, all_reduce = Messages(), dist.all_reduce

    def recorded(tensor: Tensor, **options: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, **options)

    monkeypatch.setattr(dist, "all_reduce", recorded)
    return sent


def network() -> nn.Sequential:
    """Weights of 12, 3, 6 and 2 values, in this order."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def loss(model: nn.Module) -> Tensor:
    return model(torch.arange(8.0).view(2, 4) / 8).square().sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("message_bytes", [1, 20, 2**20])
def test_gradients_are_divided_by_the_number_of_processes(message_bytes: int) -> None:
    model, reference = network(), network()
    with averaged_gradients(list(model.parameters()), 4, message_bytes):
        torch.autograd.backward(loss(model))
    torch.autograd.backward(loss(reference))
    for weight, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert weight.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(weight.grad, expected.grad / 4)


def test_messages_have_the_least_size_and_the_last_weights_come_first(messages: Messages) -> None:
    model = network()
    with averaged_gradients(list(model.parameters()), 2, message_bytes=32):
        torch.autograd.backward(loss(model))
    assert messages == [8, 15]  # 2 + 6 values are 32 bytes; the rest is 3 + 12


def test_a_message_is_sent_during_the_backward_pass(messages: Messages) -> None:
    model, first = network(), []
    model[0].register_full_backward_hook(lambda *_: first.append(len(messages)))
    inputs = torch.ones(2, 4, requires_grad=True)
    with averaged_gradients(list(model.parameters()), 2, message_bytes=1):
        torch.autograd.backward(model(inputs).sum())
        assert len(messages) == 4  # before the end of the context
    assert first[0] >= 2  # the messages of the last layer, before the first layer is done


def test_weights_without_a_gradient_are_left_out(messages: Messages) -> None:
    model, frozen = network(), nn.Parameter(torch.ones(7), requires_grad=False)
    unused = nn.Parameter(torch.ones(5))
    with averaged_gradients([*model.parameters(), unused, frozen], 2, message_bytes=1):
        torch.autograd.backward(loss(model))
    assert unused.grad is frozen.grad is None
    assert messages == [2, 6, 3, 12]


def test_a_weight_that_is_used_twice_is_averaged_once(messages: Messages) -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    with averaged_gradients([weight], 2, message_bytes=1):
        torch.autograd.backward((weight * 3 + weight * weight).sum())
    assert weight.grad is not None
    assert (messages, weight.grad.item()) == ([1], 3.5)


def test_dtypes_have_messages_of_their_own(messages: Messages) -> None:
    weights = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)]
    with averaged_gradients(weights, 2):
        torch.autograd.backward([weight.sum() for weight in weights])
    assert messages == [4, 2]
    for weight in weights:
        torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.5))


def test_later_backward_passes_are_not_averaged(messages: Messages) -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="stop"), averaged_gradients([weight], 2):
        raise ValueError("stop")
    torch.autograd.backward(weight.sum())
    assert (messages, weight.grad) == ([], torch.ones(1))
