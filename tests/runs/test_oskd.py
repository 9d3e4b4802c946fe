"""The method oskd: neighbours, the loss in closed form, and hidden subclasses after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data, Split
from tutelage.methods import find
from tutelage.methods.oskd import Subclasses, distances_to_neighbours, neighbour_masks, neighbour_means, subclass_loss
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.training import FitResult, Learner, Run

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=3, batch_size=16, lr=0.05)


def made_up(samples: int = 12, size: int = 3, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    return features, torch.arange(samples) % classes


def by_hand(
    features: Tensor, targets: Tensor, neighbours: int, other_neighbours: int, margin: float | None = None
) -> list[float]:
    """The definition in plain loops."""
    rows, labels = features.tolist(), targets.tolist()

    def squared(a: list[float], b: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    def part(i: int, candidates: list[int], count: int) -> float | None:
        nearest = sorted(candidates, key=lambda j: squared(rows[i], rows[j]))[:count]
        if not nearest:
            return None
        mean = [sum(rows[j][d] for j in nearest) / len(nearest) for d in range(len(rows[i]))]
        return squared(rows[i], mean)

    values = []
    for i in range(len(rows)):
        known = [j for j in range(len(rows)) if j != i and labels[j] >= 0 and labels[i] >= 0]
        attraction = part(i, [j for j in known if labels[j] == labels[i]], neighbours)
        repulsion = part(i, [j for j in known if labels[j] != labels[i]], other_neighbours)
        value = attraction or 0.0
        if repulsion is not None:
            value += -repulsion if margin is None else max(0.0, margin - repulsion)
        values.append(value)
    return values


# --- the loss


@pytest.mark.parametrize("margin", [None, 2.0])
@pytest.mark.parametrize(("neighbours", "other_neighbours"), [(1, 1), (2, 3), (99, 1), (1, 0), (99, 99)])
def test_loss_equals_plain_loops(neighbours: int, other_neighbours: int, margin: float | None) -> None:
    features, targets = made_up()
    targets[[2, 7]] = -1
    value = subclass_loss(features, targets, neighbours, other_neighbours, margin)
    assert value.tolist() == pytest.approx(by_hand(features, targets, neighbours, other_neighbours, margin), rel=1e-10)


def test_attraction_to_all_others_is_the_scatter_within_classes() -> None:
    """The mean of the others is (n m - h_i) / (n - 1), so that distances grow by n / (n - 1)."""
    features, targets = made_up()
    count = 4
    attraction, _ = distances_to_neighbours(features, neighbour_masks(targets)[0], count - 1)
    centres = torch.stack([features[targets == c].mean(0) for c in range(3)])
    scatter = (features - centres[targets]).square().sum(1).mean()
    torch.testing.assert_close(attraction.mean(), (count / (count - 1)) ** 2 * scatter)


def test_gradient_has_its_closed_form_and_reaches_no_neighbour() -> None:
    features, targets = made_up()
    features.requires_grad_()
    same, other = neighbour_masks(targets)
    near, far = (neighbour_means(features, allowed, features, 2)[0] for allowed in (same, other))
    assert not near.requires_grad
    attraction, _ = distances_to_neighbours(features, same, 2)
    (grad,) = torch.autograd.grad(attraction.mean(), features)
    torch.testing.assert_close(grad, 2 * (features - near).detach() / len(features))
    (grad,) = torch.autograd.grad(subclass_loss(features, targets, 2, 2)[3], features)
    torch.testing.assert_close(grad[3], 2 * (far - near)[3])
    assert (grad[torch.arange(12) != 3] == 0).all()


def test_gradient_is_that_of_finite_differences_with_fixed_neighbours() -> None:
    features, targets = made_up()
    means, _ = neighbour_means(features, neighbour_masks(targets)[0], features, 2)

    def attraction(h: Tensor) -> Tensor:
        return (h - means).square().sum(1)

    assert torch.autograd.gradcheck(attraction, features.clone().requires_grad_())
    copy = features.clone().requires_grad_()
    own, _ = distances_to_neighbours(copy, neighbour_masks(targets)[0], 2)
    torch.testing.assert_close(own, attraction(copy))
    (a,), (b,) = (torch.autograd.grad(value.sum(), copy) for value in (own, attraction(copy)))
    torch.testing.assert_close(a, b)


def test_sample_is_not_its_own_neighbour_even_next_to_equal_ones() -> None:
    features = torch.tensor([[0.0], [0.0], [5.0]])
    same, other = neighbour_masks(torch.tensor([0, 0, 0]))
    assert not same.diagonal().any()
    assert not other.any()
    means, _ = neighbour_means(features, same, torch.tensor([[1.0], [2.0], [4.0]]), 1)
    assert means[:2, 0].tolist() == [2.0, 1.0]


def test_order_of_the_batch_does_not_matter() -> None:
    features, targets = made_up()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(subclass_loss(features[order], targets[order]), subclass_loss(features, targets)[order])


def test_batches_without_neighbours_are_finite() -> None:
    features, _ = made_up()
    features.requires_grad_()
    for targets in (torch.zeros(12, dtype=torch.int64), torch.arange(12), torch.full((12,), -1)):
        for margin in (None, 1.0):
            value = subclass_loss(features, targets, margin=margin)
            (grad,) = torch.autograd.grad(value.sum(), features)
            assert value.isfinite().all()
            assert grad.isfinite().all()
    same, other = neighbour_masks(torch.zeros(12, dtype=torch.int64))
    assert (distances_to_neighbours(features, other, 1)[0] == 0).all()
    assert (distances_to_neighbours(features, same, 1)[0] > 0).all()
    assert (subclass_loss(features, torch.full((12,), -1)) == 0).all()


def test_normalised_loss_is_bounded_below(batch_of: Callable[[Tensor], Batch]) -> None:
    features, targets = made_up()
    batch = batch_of(targets)
    for scale in (1.0, 1e3, 1e6):
        value = Subclasses()(Outputs(None, {"embedding": scale * features}), None, batch)
        assert (value >= -4).all()
        torch.testing.assert_close(value, subclass_loss(F.normalize(features), targets))
        bounded = Subclasses(margin=2.0)(Outputs(None, {"embedding": scale * features}), None, batch)
        assert (bounded >= 0).all()
    assert subclass_loss(1e3 * features, targets, 99, 1).min() > subclass_loss(1e3 * features, targets, 1, 99).min()
    assert subclass_loss(1e3 * features, targets).min() < -4  # what length 1 and the margin prevent


def test_soft_form_is_the_divergence_from_the_mean_logits_of_the_neighbours(
    batch_of: Callable[[Tensor], Batch],
) -> None:
    features, targets = made_up()
    targets[4] = -1
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    value = Subclasses(2, form="soft", temperature=3.0)(
        Outputs(logits, {"embedding": features}), None, batch_of(targets)
    )
    unit_rows = F.normalize(features)
    for i in range(12):
        if i == 4:
            assert value[i] == 0
            continue
        others = [j for j in range(12) if j != i and targets[j] == targets[i]]
        nearest = sorted(others, key=lambda j: float((unit_rows[i] - unit_rows[j]).square().sum()))[:2]
        target = (logits[nearest].mean(0) / 3).softmax(0).detach()
        expected = 9 * (target * (target.log() - (logits[i] / 3).log_softmax(0))).sum()
        torch.testing.assert_close(value[i], expected)
    (grad,) = torch.autograd.grad(value[0], logits)
    assert (grad[1:] == 0).all()


def test_neighbours_in_the_space_of_logits(batch_of: Callable[[Tensor], Batch]) -> None:
    features, targets = made_up()
    term = Subclasses(space="logits")
    assert term.roles == ("logits",)
    value = term(Outputs(features), None, batch_of(targets))
    torch.testing.assert_close(value, subclass_loss(F.normalize(features), targets))
    assert Subclasses(form="soft").roles == ("embedding", "logits")


def test_distances_are_computed_in_float32_under_autocast(batch_of: Callable[[Tensor], Batch]) -> None:
    features, targets = made_up()
    outputs = Outputs(None, {"embedding": features.float()})
    expected = Subclasses()(outputs, None, batch_of(targets))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Subclasses()(outputs, None, batch_of(targets)), expected)
    half = Subclasses()(Outputs(None, {"embedding": features.bfloat16()}), None, batch_of(targets))
    assert half.dtype == torch.float32


# --- the method


def test_without_weight_it_is_plain_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = [
        state_of(find(name)(Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu, seed=1), **settings))
        for name, settings in (("plain", {}), ("oskd", {"weight": 0}), ("oskd", {}))
    ]
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


@pytest.mark.parametrize(
    "settings", [{"form": "soft"}, {"space": "logits"}, {"margin": 1.0}, {"neighbours": 3}, {"other_neighbours": 0}]
)
def test_every_setting_changes_the_training(
    settings: dict[str, Any], tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = [
        state_of(find("oskd")(Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu, seed=1), **chosen))
        for chosen in ({}, settings)
    ]
    assert changed(*states)


def test_balanced_batches(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, monkeypatch: Any) -> None:
    orders: list[Any] = []
    run = Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu)

    def fit(learner: Learner, **options: Any) -> FitResult:
        orders.append(options["order"])
        return FitResult((), {})

    monkeypatch.setattr(run, "fit", fit)
    find("oskd")(run, balanced=True)
    find("oskd")(run)
    labels = torch.tensor([0] * 20 + [1] * 4)
    counts = [labels[order(labels, 12, torch.Generator())].sum(1).tolist() for order in orders]
    assert set(counts[0]) == {6}
    assert set(counts[1]) != {6}


def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [1, 2, None])):
        for stop in stops:

            def report(record: dict[str, Any], stop: int | None = stop) -> None:
                if record["epoch"] == stop:
                    raise KeyboardInterrupt

            options: dict[str, Any] = {"recipe": SHORT, "hardware": on_cpu, "folder": tmp_path / folder}
            try:
                student = find("oskd")(Run(tiny_data, tiny_model, report=report, **options))
            except KeyboardInterrupt:
                continue
        states.append(state_of(student))
    assert changed(*states) == set()


def test_invalid_settings_are_refused(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    for wrong in ({"neighbours": 0}, {"other_neighbours": -1}, {"margin": 0}, {"space": "pixels"}, {"weight": -1}):
        with refused(*wrong, *map(str, wrong.values())):
            find("oskd")(Run(tiny_data, tiny_model), **wrong)


def purity(features: Tensor, classes: Tensor, subclasses: Tensor, count: int = 5) -> float:
    """The share of the nearest samples of the class that are of the same subclass."""
    distances = torch.cdist(features, features).masked_fill(~neighbour_masks(classes)[0], torch.inf)
    nearest = distances.topk(count, largest=False).indices
    return float((subclasses[nearest] == subclasses[:, None]).float().mean())


def test_subclasses_are_purer_with_one_neighbour_than_with_all(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """Four kinds of images in two classes: attraction to one neighbour keeps them apart, to all it does not."""

    def halved(split: Split) -> Split:
        return Split.of(split.inputs, split.labels // 2)

    train, test = halved(tiny_data.train), halved(tiny_data.test)
    data = replace(tiny_data, classes=("low", "high"), train=train, validation=None, test=test)
    purities, recipe = [], Recipe(epochs=30, batch_size=48, optimizer="Adam", lr=0.01)
    for neighbours in (1, 99):
        run = Run(data, lambda: tiny_model(classes=2), recipe=recipe, hardware=on_cpu)
        student = find("oskd")(run, weight=1.0, neighbours=neighbours, other_neighbours=0)
        features = run.predict(student, data.train, ("embedding",))
        purities.append(purity(F.normalize(features), data.train.labels, tiny_data.train.labels))
    assert purities[0] > 0.95
    assert purities[1] < 0.93
