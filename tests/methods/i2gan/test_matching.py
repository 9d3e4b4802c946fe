"""Feature matching: the loss of the generator, its batch, and what it leaves unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.i2gan.matching import FeatureMatching, Repeated, mean_distance
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms.part import Part


def image_batch(size: int) -> Batch:
    images = torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(size), 10 + torch.arange(size), None)


def test_distance_by_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    generated, real = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (6, 4))
    expected = 0.0
    for feature in range(3):
        means = [sum(row[feature] for row in rows.tolist()) / len(rows) for rows in (generated, real)]
        expected += abs(means[0] - means[1]) / 3
    assert mean_distance(generated, real).item() == pytest.approx(expected, rel=1e-12)


def test_distance_of_a_shift_is_its_size() -> None:
    features = torch.randn(5, 4, dtype=torch.float64)
    assert mean_distance(features, features).item() == 0
    assert mean_distance(features - 0.7, features).item() == pytest.approx(0.7)


def test_distance_has_gradient_for_generated_features_alone() -> None:
    generated, real = torch.randn(8, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    mean_distance(generated, real).backward()
    assert real.grad is None
    expected = (generated.detach().mean(0) - real.detach().mean(0)).sign() / (3 * 8)
    torch.testing.assert_close(generated.grad, expected.expand(8, 3))


def test_more_generated_features_do_not_rescale_the_loss() -> None:
    generated, real = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert mean_distance(generated.repeat(5, 1), real).item() == pytest.approx(mean_distance(generated, real).item())


@pytest.mark.parametrize(("part", "indices"), [(None, [10, 11, 12, 13]), (Part(1, others=True), [11, 12, 13])])
def test_repeated_samples_of_a_part(part: Part | None, indices: list[int]) -> None:
    batch = image_batch(4)
    repeated = Repeated(part, 3)(batch, Outputs(None), None)
    assert repeated.index.tolist() == [index for index in indices for _ in range(3)]
    assert torch.equal(repeated.inputs, batch.inputs[repeated.index - 10])
    assert repeated.targets.tolist() == (repeated.index - 10).tolist()


def test_term_compares_generated_with_real_images(
    tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    """Batch normalisation in train mode normalises each kind by itself and keeps its running statistics."""
    discriminator = tiny_model().train()
    before, batch = state_of(discriminator), image_batch(4)
    images = torch.rand(12, 1, 8, 8, requires_grad=True)
    value = FeatureMatching(discriminator)(Outputs(None, {"image": images}), None, batch)
    assert changed(before, state_of(discriminator)) == set()
    features = [discriminator.tap(x, ("embedding",))["embedding"] for x in (images, batch.inputs)]
    torch.testing.assert_close(value, mean_distance(*features))
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.abs().sum() > 0


def test_each_repeated_image_runs_once(tiny_model: Callable[..., Tapped]) -> None:
    discriminator, batch = tiny_model().eval(), image_batch(4)
    outputs = Outputs(None, {"image": torch.rand(12, 1, 8, 8)})
    expected = FeatureMatching(discriminator)(outputs, None, batch)
    passes = discriminator.passes
    repeated = Repeated(None, 3)(batch, Outputs(None), None)
    torch.testing.assert_close(FeatureMatching(discriminator, 3)(outputs, None, repeated), expected)
    assert discriminator.passes - passes == 12 + 4


def test_term_has_no_parameters(tiny_model: Callable[..., Tapped]) -> None:
    term = FeatureMatching(tiny_model())
    assert not list(term.parameters())
    assert not term.state_dict()


def test_term_needs_a_batch_of_real_images(tiny_model: Callable[..., Tapped]) -> None:
    with pytest.raises(TutelageError, match="a batch"):
        FeatureMatching(tiny_model())(Outputs(None, {"image": torch.rand(2, 1, 8, 8)}), None, None)


def test_generated_images_approach_real_features(tiny_model: Callable[..., Tapped]) -> None:
    """Images that are trained by the term alone get the mean features of the real ones."""
    discriminator, batch = tiny_model().eval(), image_batch(16)
    images = torch.zeros(8, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([images], lr=0.05)
    distances: list[Tensor] = []
    for _ in range(60):
        value = FeatureMatching(discriminator)(Outputs(None, {"image": images}), None, batch)
        distances.append(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert distances[-1] < 0.2 * distances[0]
