"""Random numbers that are functions of a seed and a position (counter-based), so that every view can be replayed."""

from __future__ import annotations

from torch import Tensor

BITS = 24  # a float32 holds so many bits exactly


def hash_numbers(value: Tensor) -> Tensor:
    """Hash int64 numbers (the finaliser of SplitMix64, modulo 2^64)."""
    value = value * -7046029254386353131 + 1442695040888963407
    value = (value ^ ((value >> 30) & (2**34 - 1))) * -4658895280553007687
    value = (value ^ ((value >> 27) & (2**37 - 1))) * -7723592293110705685
    return value ^ ((value >> 31) & (2**33 - 1))


class Draws:
    """A sequence of random numbers for each sample, which depends on the sample's seed only.

    Args:
        seed: (B,) int64.
    """

    def __init__(self, seed: Tensor) -> None:
        self._seed, self._position = seed, 0

    @classmethod
    def of(cls, view: Tensor, index: Tensor, stream: int) -> Draws:
        """The numbers of view ``view[b]`` of sample ``index[b]``, (B,) int64 each; streams are independent."""
        return cls(hash_numbers(hash_numbers(index + hash_numbers(view)) + stream))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """The next numbers in [low, high): (B,) float32."""
        self._position += 1
        bits = hash_numbers(self._seed + self._position) & (2**BITS - 1)
        share: Tensor = bits.float() / 2**BITS
        return low + (high - low) * share

    def integers(self, count: int) -> Tensor:
        """The next whole numbers from 0 to ``count - 1``: (B,) int64."""
        return (self.uniform() * count).long().clamp_(max=count - 1)

    def chance(self, probability: float) -> Tensor:
        """True with this probability: (B,) bool."""
        return self.uniform() < probability

    def sign(self) -> Tensor:
        """-1 or 1: (B,) float32."""
        return 1 - 2 * self.integers(2).float()


def per_image(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1), which multiplies images."""
    return values[:, None, None, None]
