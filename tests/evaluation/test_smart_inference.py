"""Smart inference against closed forms and a brute-force search over all possible strings."""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.formats.ean13 import EAN13, Checksum, with_check_digit
from tutelage.evaluation.smart_inference import (
    Rotated,
    fast_track,
    full_voting,
    most_probable,
    read,
    rotated,
)


def random_logits(samples: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(samples, 13, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def certain_logits(strings: Tensor, size: float = 20.0) -> Tensor:
    """Logits whose probabilities for ``strings`` are nearly 1."""
    return size * nn.functional.one_hot(strings, 10).float()


@pytest.fixture
def strings() -> Tensor:
    return with_check_digit(torch.randint(10, (200, 12), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("candidates", [0, 1, 2, 4, 6])
def test_reading_is_the_best_valid_string_of_all_substitutions(candidates: int) -> None:
    logits = random_logits(25)
    reading = read(logits, EAN13, candidates)
    for sample in range(len(logits)):
        log_p = logits[sample].log_softmax(1)
        order = log_p.argsort(1, descending=True).tolist()
        p = log_p.exp()
        margin = [float(p[d, order[d][0]] - p[d, order[d][1]]) for d in range(13)]
        positions = sorted(range(13), key=margin.__getitem__)[:candidates]
        best: tuple[float, list[int]] | None = None
        for count in range(candidates + 1):
            for subset in combinations(positions, count):
                string = [order[d][1 if d in subset else 0] for d in range(13)]
                if sum(w * d for w, d in zip((1, 3) * 6 + (1,), string, strict=True)) % 10 == 0:
                    total = math.fsum(float(log_p[d, digit]) for d, digit in enumerate(string))
                    best = max(best or (-math.inf, []), (total, string))
        assert bool(reading.accepted[sample]) == (best is not None)
        if best is None:
            assert reading.symbols[sample].tolist() == [row[0] for row in order]
        else:
            assert reading.symbols[sample].tolist() == best[1]
            assert float(reading.log_prob[sample]) == pytest.approx(best[0], abs=1e-4)


def test_accepted_strings_pass_the_checksum() -> None:
    for candidates in (0, 1, 3, 6):
        reading = read(random_logits(500), EAN13, candidates)
        assert EAN13.valid(reading.symbols[reading.accepted]).all()
        assert not EAN13.valid(reading.symbols[~reading.accepted]).any()


@pytest.mark.parametrize("candidates", [0, 1, 2, 4])
def test_valid_string_of_first_choices_is_unchanged(candidates: int, strings: Tensor) -> None:
    logits = certain_logits(strings, 1.0) + 0.3 * torch.rand(200, 13, 10, generator=torch.Generator().manual_seed(4))
    assert torch.equal(logits.argmax(2), strings)
    reading = read(logits, EAN13, candidates)
    assert reading.accepted.all()
    assert torch.equal(reading.symbols, strings)


@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_wrong_digit_with_the_smallest_margin_is_replaced_by_its_runner_up(candidates: int, strings: Tensor) -> None:
    logits = certain_logits(strings)
    samples, position = torch.arange(200), torch.arange(200) % 13
    label = strings[samples, position]
    logits[samples, position, label] = 1.0
    logits[samples, position, (label + 1 + samples % 9) % 10] = 1.1
    assert not (logits.argmax(2) == strings).all(1).any()
    assert not read(logits, EAN13, 0).accepted.any()
    reading = read(logits, EAN13, candidates)
    assert reading.accepted.all()
    assert torch.equal(reading.symbols, strings)


def test_more_candidates_accept_more_strings_and_more_noise() -> None:
    """On random logits, K residue changes of 1 to 9 accept one tenth per distinct subset sum."""
    logits = random_logits(4000, seed=5)
    shares = [float(read(logits, EAN13, k).accepted.double().mean()) for k in range(5)]
    assert shares == sorted(shares)
    for k, share in enumerate(shares[:4]):
        accepted = [
            len({sum(subset) % 10 for size in range(k + 1) for subset in combinations(changes, size)})
            for changes in product(range(1, 10), repeat=k)
        ]
        assert share == pytest.approx(sum(accepted) / len(accepted) / 10, abs=0.025)
    assert float(shares[0]) == pytest.approx(0.1, abs=0.02)
    assert float(shares[1]) == pytest.approx(0.2, abs=0.02)


def test_reading_does_not_depend_on_the_order_of_classes() -> None:
    """Multiplying each digit by 3 modulo 10 is a bijection that preserves validity."""
    logits = random_logits(300)
    permutation = 3 * torch.arange(10) % 10
    other = torch.empty_like(logits)
    other[:, :, permutation] = logits
    for candidates in (0, 2, 4):
        first, second = read(logits, EAN13, candidates), read(other, EAN13, candidates)
        assert torch.equal(first.accepted, second.accepted)
        assert torch.equal(permutation[first.symbols], second.symbols)
    assert torch.equal(permutation[most_probable(logits, EAN13).symbols], most_probable(other, EAN13).symbols)


def test_candidates_out_of_range_are_refused(refused: Any) -> None:
    for candidates in (-1, 11):
        with refused("0 to 10", candidates):
            read(random_logits(1), EAN13, candidates)


def test_most_probable_valid_string_equals_brute_force() -> None:
    checksum = Checksum((2, 1, 4), 5)
    logits = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    reading = most_probable(logits, checksum)
    valid = [string for string in product(range(4), repeat=3) if (2 * string[0] + string[1] + 4 * string[2]) % 5 == 0]
    for sample, log_p in enumerate(logits.log_softmax(2)):
        totals = {string: sum(float(log_p[d, symbol]) for d, symbol in enumerate(string)) for string in valid}
        best = max(totals, key=totals.__getitem__)
        assert tuple(reading.symbols[sample].tolist()) == best
        assert float(reading.log_prob[sample]) == pytest.approx(totals[best], abs=1e-4)
    assert reading.accepted.all()


def test_search_without_pruning_is_at_least_as_probable() -> None:
    logits = random_logits(300)
    best = most_probable(logits, EAN13)
    assert EAN13.valid(best.symbols).all()
    for candidates in (0, 2, 6):
        reading = read(logits, EAN13, candidates)
        assert (reading.log_prob <= best.log_prob + 1e-3)[reading.accepted].all()


# --- several views


def test_fast_track_prefers_valid_first_choices(strings: Tensor) -> None:
    first, second = strings[:1], strings[1:2]
    doubtful_logits = certain_logits(first)
    doubtful_logits[0, 4, int(first[0, 4])] = 1.0
    doubtful_logits[0, 4, (int(first[0, 4]) + 3) % 10] = 1.1  # invalid, and repaired by one substitution
    reading = fast_track([doubtful_logits, certain_logits(second)], EAN13, 1)
    assert torch.equal(reading.symbols, second)
    reading = fast_track([doubtful_logits, doubtful_logits], EAN13, 1)
    assert torch.equal(reading.symbols, first)
    assert reading.accepted.all()
    assert not fast_track([doubtful_logits, doubtful_logits], EAN13, 0).accepted.any()


def test_votes_are_counted_and_ties_go_to_the_more_probable(strings: Tensor) -> None:
    first_vote, second_vote = strings[:1], strings[1:2]
    assert torch.equal(
        full_voting(
            [certain_logits(first_vote), certain_logits(second_vote), certain_logits(second_vote, 5.0)], EAN13, 0
        ).symbols,
        second_vote,
    )
    assert torch.equal(
        full_voting([certain_logits(first_vote), certain_logits(second_vote, 5.0)], EAN13, 0).symbols, first_vote
    )
    invalid = (first_vote + torch.eye(13, dtype=torch.int64)[:1]) % 10
    views = [certain_logits(invalid), certain_logits(invalid), certain_logits(second_vote)]
    reading = full_voting(views, EAN13, 0)
    assert torch.equal(reading.symbols, second_vote)
    assert reading.accepted.all()
    assert not full_voting(views[:2], EAN13, 0).accepted.any()


def test_single_view_is_read_unchanged() -> None:
    logits = random_logits(200)
    expected = read(logits, EAN13, 2)
    for policy in (fast_track, full_voting):
        reading = policy([logits], EAN13, 2)
        assert torch.equal(reading.accepted, expected.accepted)
        assert torch.equal(reading.symbols[reading.accepted], expected.symbols[expected.accepted])


def test_rotated_images() -> None:
    images = torch.rand(2, 1, 6, 10)
    torch.testing.assert_close(rotated(images, 0), images)
    torch.testing.assert_close(rotated(images, 180), images.flip(2, 3), rtol=1e-4, atol=1e-4)
    square = torch.rand(1, 1, 7, 7)
    torch.testing.assert_close(rotated(square, 90), square.rot90(-1, (2, 3)), rtol=1e-4, atol=1e-4)
    assert torch.equal(Rotated(nn.Identity(), 0)(images), images)
    torch.testing.assert_close(Rotated(nn.Identity(), 5)(images), rotated(images, 5))
