"""EAN-13: the check digit and the 95 modules of a barcode (GS1 General Specifications, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import TutelageError

LENGTH = 13
MODULES = 95

_LEFT_ODD = (
    "0001101",
    "0011001",
    "0010011",
    "0111101",
    "0100011",
    "0110001",
    "0101111",
    "0111011",
    "0110111",
    "0001011",
)
_GUARD, _CENTRE = "101", "01010"
# Which of the digits 2 to 7 have even parity, by the first digit, which has no bars itself.
_PARITY = ("000000", "001011", "001101", "001110", "010011", "011001", "011100", "010101", "010110", "011010")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A weighted sum of a string's symbols; the string is valid if the sum is a multiple of the modulus.

    Attributes:
        weights: the weight of each position.
        modulus: the divisor of the sum.
    """

    weights: tuple[int, ...]
    modulus: int

    def residue(self, symbols: Tensor) -> Tensor:
        """Return (sum over positions of weight x symbol) mod modulus: (..., L) int64 to (...), 0 for a valid string.

        Raises:
            TutelageError: the strings have another length.
        """
        if symbols.shape[-1] != len(self.weights):
            raise TutelageError(
                f"the strings have {symbols.shape[-1]} symbols, and the checksum needs {len(self.weights)}"
            )
        return (symbols * torch.tensor(self.weights, device=symbols.device)).sum(-1) % self.modulus

    def valid(self, symbols: Tensor) -> Tensor:
        """Whether each string is valid: (..., L) int64 to (...) bool."""
        return self.residue(symbols) == 0


EAN13 = Checksum((1, 3) * 6 + (1,), 10)


def with_check_digit(digits: Tensor) -> Tensor:
    """Append the check digit (10 - (sum of odd + 3 x sum of even positions) mod 10) mod 10 to twelve digits.

    Args:
        digits: (N, 12) int64, positions counted from 1.

    Returns:
        (N, 13) int64, all valid.
    """
    check = -Checksum(EAN13.weights[:-1], EAN13.modulus).residue(digits) % EAN13.modulus
    return torch.cat([digits, check[:, None]], 1)


def modules(strings: Tensor) -> Tensor:
    """The bars of barcodes: (N, 13) digits to (N, 95) uint8, 1 for a dark module.

    101, six digits of seven modules, 01010, six digits, 101. The first of the 13 digits is encoded in the parities of
    the next six.

    Raises:
        TutelageError: the strings have another length, or symbols that are not digits.
    """
    if strings.shape[1:] != (LENGTH,) or bool(((strings < 0) | (strings > 9)).any()):
        raise TutelageError(f"EAN-13 has {LENGTH} digits from 0 to 9, got strings of shape {tuple(strings.shape)}")
    odd = _bits(*_LEFT_ODD).to(strings.device)  # (10, 7)
    right = 1 - odd
    even = right.flip(1)
    parity = _bits(*_PARITY).to(strings.device)[strings[:, 0]].bool()  # (N, 6)
    first = torch.where(parity[:, :, None], even[strings[:, 1:7]], odd[strings[:, 1:7]])
    guard, centre = (_bits(text).to(strings.device).expand(len(strings), -1) for text in (_GUARD, _CENTRE))
    return torch.cat([guard, first.flatten(1), centre, right[strings[:, 7:]].flatten(1), guard], 1)


def _bits(*rows: str) -> Tensor:
    return torch.tensor([[int(bit) for bit in row] for row in rows], dtype=torch.uint8)
