"""Metrics of saliency maps: closed forms, invariances and a reference in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.evaluation import saliency_loops as loops
from tutelage.evaluation.saliency import auc_borji, auc_judd, auc_shuffled, cc, centre_prior, kl, nss, sim

GENERATOR = torch.Generator()


def draw(*, ties: bool = False, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions, densities, fixations and those of other images, (4, 5, 6) each."""
    generator = GENERATOR.manual_seed(seed)
    prediction, density = torch.rand(2, 4, 5, 6, generator=generator)
    if ties:
        prediction = (prediction * 4).floor() / 4 + 0.25
    fixations = torch.poisson(torch.full((4, 5, 6), 0.4), generator)
    others = torch.poisson(torch.full((4, 5, 6), 2.0), generator)
    return prediction, density, fixations, others


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_the_plain_loops(ties: bool) -> None:
    prediction, density, fixations, others = draw(ties=ties)
    batched = {
        "cc": cc(prediction, density),
        "nss": nss(prediction, fixations),
        "sim": sim(prediction, density),
        "kl": kl(prediction, density),
        "auc_judd": auc_judd(prediction, fixations),
        "auc_borji": auc_borji(prediction, fixations),
        "auc_shuffled": auc_shuffled(prediction, fixations, others),
    }
    for image in range(4):
        p, q, f, o = (values[image].tolist() for values in (prediction, density, fixations, others))
        expected = {
            "cc": loops.cc(p, q),
            "nss": loops.nss(p, f),
            "sim": loops.sim(p, q),
            "kl": loops.kl(p, q),
            "auc_judd": loops.auc_judd(p, f),
            "auc_borji": loops.auc_borji(p, f),
            "auc_shuffled": loops.auc_shuffled(p, f, o),
        }
        assert {name: float(values[image]) for name, values in batched.items()} == pytest.approx(expected, abs=1e-9)


def test_prediction_that_equals_the_density_is_perfect() -> None:
    _, density, _, _ = draw()
    assert torch.allclose(cc(density, density), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(sim(density, density), torch.ones(4, dtype=torch.float64))
    assert float(kl(density, density).abs().max()) < 1e-12


def test_disjoint_maps_have_no_similarity_and_a_large_divergence() -> None:
    left, right = torch.zeros(2, 1, 4, 4)
    left[:, :, :2], right[:, :, 2:] = 1, 1
    assert float(sim(left, right)) == 0
    assert float(kl(left, right)) == pytest.approx(-math.log(2.2204e-16 * 8), rel=1e-3)
    assert float(cc(left, right)) == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_constant_prediction_scores_at_chance(value: float) -> None:
    _, density, fixations, others = draw()
    constant = torch.full((4, 5, 6), value)
    assert cc(constant, density).tolist() == [0.0] * 4
    assert nss(constant, fixations).tolist() == [0.0] * 4
    for area in (auc_judd(constant, fixations), auc_borji(constant, fixations)):
        assert area.tolist() == [0.5] * 4
    assert auc_shuffled(constant, fixations, others).tolist() == [0.5] * 4


def test_map_of_zeros_is_a_constant_density() -> None:
    _, density, _, _ = draw()
    zeros, ones = torch.zeros(4, 5, 6), torch.ones(4, 5, 6)
    assert torch.equal(sim(zeros, density), sim(ones, density))
    assert torch.equal(kl(zeros, density), kl(ones, density))


@pytest.mark.parametrize(("share", "expected"), [(0.1, 3.0), (0.25, math.sqrt(3))])
def test_nss_of_a_binary_map_that_holds_all_fixations(share: float, expected: float) -> None:
    prediction, fixations = torch.zeros(2, 1, 10, 20)
    marked = round(share * 200)
    prediction.view(-1)[:marked] = 1
    fixations.view(-1)[[0, marked - 1]] = torch.tensor([1.0, 4.0])
    assert float(nss(prediction, fixations)) == pytest.approx(expected)


def test_nss_counts_a_pixel_as_often_as_it_was_fixated() -> None:
    prediction = torch.tensor([[[0.0, 1.0, 2.0]]])
    once, twice = torch.tensor([[[1.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]])
    deviation = math.sqrt(2 / 3)
    assert float(nss(prediction, once[None])) == pytest.approx(-1 / 2 / deviation)
    assert float(nss(prediction, twice[None])) == pytest.approx(-2 / 3 / deviation)


def test_areas_of_one_fixation() -> None:
    """At the only maximum all areas are 1 or, against all pixels, one half of a pixel less."""
    prediction = torch.arange(20.0).view(1, 4, 5)
    fixations, others = torch.zeros(1, 4, 5), torch.ones(1, 4, 5)
    fixations[0, 3, 4], others[0, 3, 4] = 1, 0
    assert float(auc_judd(prediction, fixations)) == 1
    assert float(auc_shuffled(prediction, fixations, others)) == 1
    assert float(auc_borji(prediction, fixations)) == pytest.approx(1 - 0.5 / 20)
    assert float(auc_judd(-prediction, fixations)) == pytest.approx(0.5)  # the curve is linear from 0 to its only point
    assert float(auc_shuffled(-prediction, fixations, others)) == 0


AFFINE: list[Callable[[Tensor], Tensor]] = [lambda x: 3 * x + 1, lambda x: 0.25 * x]
INCREASING: list[Callable[[Tensor], Tensor]] = [*AFFINE, torch.exp, lambda x: x**3]


@pytest.mark.parametrize("change", AFFINE)
def test_metrics_but_kl_and_sim_ignore_a_positive_affine_map(change: Callable[[Tensor], Tensor]) -> None:
    prediction, density, fixations, _ = (values.double() for values in draw(seed=1))
    torch.testing.assert_close(cc(change(prediction), density), cc(prediction, density))
    torch.testing.assert_close(nss(change(prediction), fixations), nss(prediction, fixations))
    for metric in (sim, kl):
        torch.testing.assert_close(metric(5 * prediction, density), metric(prediction, density))
        assert not torch.allclose(metric(prediction + 1, density), metric(prediction, density))


@pytest.mark.parametrize("change", INCREASING)
def test_areas_ignore_an_increasing_map(change: Callable[[Tensor], Tensor]) -> None:
    prediction, _, fixations, others = (values.double() for values in draw(ties=True, seed=2))
    assert torch.equal(auc_judd(change(prediction), fixations), auc_judd(prediction, fixations))
    assert torch.equal(auc_borji(change(prediction), fixations), auc_borji(prediction, fixations))
    assert torch.equal(auc_shuffled(change(prediction), fixations, others), auc_shuffled(prediction, fixations, others))


def test_judds_area_exceeds_the_exact_one_by_at_most_half_a_fixation() -> None:
    prediction, _, fixations, _ = draw(seed=3)
    judd = auc_judd(prediction, fixations)
    exact = auc_shuffled(prediction, (fixations > 0).float(), (fixations == 0).float())
    assert bool((judd >= exact).all())
    assert bool((judd - exact <= 0.5 / (fixations > 0).flatten(1).sum(1)).all())


def test_centre_prior_has_a_shuffled_area_of_a_half_where_all_images_are_alike() -> None:
    """If the other images' fixations are distributed as the image's own, no prediction exceeds 0.5."""
    prior = centre_prior(6, 8)[None]
    counts = torch.poisson(20 * prior, GENERATOR.manual_seed(0))
    assert float(auc_shuffled(prior, counts, 3 * counts)) == pytest.approx(0.5)
    assert float(auc_judd(prior, counts)) > 0.5
    assert float(prior[0, 2:4, 3:5].min()) == float(prior.max())
    assert torch.equal(prior, prior.flip(1))
    assert torch.equal(prior, prior.flip(2))


def test_images_without_fixations_or_density_are_undefined() -> None:
    prediction, _, fixations, _ = draw()
    nothing = torch.zeros(4, 5, 6)
    unknown = torch.full((4, 5, 6), float("nan"))
    for values in (
        nss(prediction, nothing),
        auc_judd(prediction, nothing),
        auc_judd(prediction, nothing + 1),
        auc_borji(prediction, nothing),
        auc_shuffled(prediction, fixations, nothing),
        cc(prediction, unknown),
        sim(prediction, unknown),
        kl(prediction, unknown),
        nss(prediction, unknown),
        auc_judd(prediction, unknown),
    ):
        assert bool(values.isnan().all())


def test_logits_are_no_density(refused: Callable[..., object]) -> None:
    prediction, density, _, _ = draw()
    with refused("has the value -", "pass probabilities"):  # type: ignore[attr-defined]
        sim(prediction - 1, density)
