"""EAN-13: closed forms of the check digit, and modules compared with python-barcode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data.formats.ean13 import EAN13, MODULES, Checksum, modules, with_check_digit


def digits(text: str) -> Tensor:
    return torch.tensor([[int(digit) for digit in text]])


@pytest.fixture
def strings() -> Tensor:
    return with_check_digit(torch.randint(10, (300, 12), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("text", "check"), [("400638133393", 1), ("000000000000", 0), ("978030640615", 7)])
def test_check_digits_of_published_examples(text: str, check: int) -> None:
    assert with_check_digit(digits(text))[0, 12] == check


def test_every_substitution_of_one_digit_is_detected(strings: Tensor) -> None:
    assert EAN13.valid(strings).all()
    for position in range(13):
        for step in range(1, 10):
            changed_strings = strings.clone()
            changed_strings[:, position] = (changed_strings[:, position] + step) % 10
            assert not EAN13.valid(changed_strings).any()


def test_transpositions_are_undetected_exactly_if_digits_differ_by_five(strings: Tensor) -> None:
    undetected = unequal = 0
    for position in range(12):
        swapped_strings = strings.clone()
        swapped_strings[:, [position, position + 1]] = strings[:, [position + 1, position]]
        gap = (strings[:, position] - strings[:, position + 1]).abs()
        assert torch.equal(EAN13.valid(swapped_strings) & (gap > 0), gap == 5)
        undetected, unequal = undetected + int((gap == 5).sum()), unequal + int((gap > 0).sum())
    assert undetected / unequal == pytest.approx(1 / 9, abs=0.02)


def test_one_tenth_of_random_strings_is_valid() -> None:
    samples = torch.randint(10, (20_000, 13), generator=torch.Generator().manual_seed(2))
    assert float(EAN13.valid(samples).double().mean()) == pytest.approx(0.1, abs=0.01)


def test_modules_equal_those_of_python_barcode(strings: Tensor) -> None:
    barcode = pytest.importorskip("barcode")
    every_first = torch.arange(10)[:, None].expand(10, 12)
    samples = torch.cat([strings[:50], with_check_digit(every_first)])
    modules_of_samples = modules(samples)
    assert modules_of_samples.shape == (60, MODULES)
    for string, bars in zip(samples.tolist(), modules_of_samples.tolist(), strict=True):
        (expected,) = barcode.EAN13("".join(map(str, string[:12]))).build()
        assert "".join(map(str, bars)) == expected.replace("G", "1")  # G marks a guard bar


def test_digit_of_seven_modules_has_two_bars_and_two_spaces(strings: Tensor) -> None:
    for bars in modules(strings)[:, 3:45].reshape(-1, 7):
        assert int((bars.diff() != 0).sum()) == 3


def test_invalid_strings_are_refused(refused: Any) -> None:
    with refused("13 digits", "(1, 12)"):
        modules(digits("400638133393"))
    with refused("from 0 to 9"):
        modules(torch.full((2, 13), 10))
    with refused("12 symbols"):
        EAN13.valid(digits("400638133393"))


def test_checksum_follows_its_weights() -> None:
    isbn10 = Checksum(tuple(range(10, 0, -1)), 11)
    assert isbn10.valid(digits("0306406152"))[0]
    assert not isbn10.valid(digits("0306406125"))[0]
