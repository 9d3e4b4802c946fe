"""The update rule of the method mslg: the meta-gradient, and the update of labels and network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data import Split
from tutelage.data.batch import Batch
from tutelage.methods.mslg import MetaLabels, initial_scores, smallest_losses
from tutelage.methods.mslg.labels import LearnedLabels
from tutelage.models.tapped import Tapped
from tutelage.terms.entropy import Entropy
from tutelage.training import Learner, Step

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
