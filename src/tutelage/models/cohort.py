"""The networks of a cohort: from a function that makes them, or copies of a single one with weights drawn anew."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.models.state import copy_network, is_constant, same_initial_weights
from tutelage.models.tapped import Tapped

_RESETS = ("reset_parameters", "_reset_parameters")  # the second is that of nn.MultiheadAttention and nn.Transformer
_ADVICE = "give a function that makes the network, for instance student=make_network"
_COMPARED = 4096  # elements of a parameter that are compared with others
_IMPROBABLE = 1e-6  # per parameter, of two draws from one distribution being taken for draws from two


class ModelFactory:
    """Networks for a cohort from a function. One warning says that it gives the same weights each time.

    Args:
        make: makes a network, whose weights are drawn from torch's global generator.
    """

    def __init__(self, make: Callable[[], Tapped]) -> None:
        self.make = make
        self._first: tuple[Tapped, list[int]] | None = None

    def __call__(self) -> Tapped:
        """The next network."""
        model = self.make()
        if self._first is None:
            self._first = model, _versions(model)
        elif self._first[1] == _versions(self._first[0]) and same_initial_weights(self._first[0], model):
            self._first = model, []  # which is no state of a network: one warning is enough
            warnings.warn(
                f"the function that makes the students gives a {type(model.module).__name__} with the same weights "
                "each time, so that networks of a cohort start as one; draw the weights in it",
                TutelageWarning,
                stacklevel=2,
            )
        return model


class CopyFactory:
    """Networks for a cohort from a single one: itself first, then copies whose layers draw their weights anew.

    A copy is made when a second network is requested. It starts from what the first held when it was given, and each of
    its modules then calls its ``reset_parameters()``, inner modules before outer ones, from torch's global generator. A
    network with an initialisation of its own has a ``reset_parameters`` itself.

    Where the weights of the first are not distributed as its modules draw them, since it was trained or initialised by
    hand, one warning says that the copies lack that.

    Args:
        original: the network; it is never changed here.
    """

    def __init__(self, original: Tapped) -> None:
        self.original = original
        self._initial: dict[str, Tensor] = {}
        self._warned = False

    def __call__(self) -> Tapped:
        """The next network.

        Raises:
            TutelageError: a copy cannot be made, or a parameter that its modules do not draw would equal the first's.
        """
        if not self._initial:
            self._initial = {name: value.detach().clone() for name, value in _tensors(self.original).items()}
            return self.original
        who = type(self.original.module).__name__
        model = copy_network(self.original, who, f"this method trains several networks: {_ADVICE}")
        self._take_back(model, who)
        untouched = _reset(model, who)
        for name, value in model.named_parameters():
            first = self._initial[name]
            drawn = name not in untouched or not value.requires_grad or is_constant(first)
            if not drawn and torch.equal(first, value):
                raise TutelageError(
                    f"{who} cannot be copied for a cohort: no reset_parameters() draws {_own(name)!r} anew, so that "
                    f"all networks would start with the same values; {_ADVICE}"
                )
        lost = next((name for name, value in _tensors(model).items() if _differs(self._initial[name], value)), None)
        if lost is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"the further networks of this cohort are copies of {who} with weights drawn anew, and {_own(lost)!r} "
                f"of the first is not distributed so: its training or initialisation is lost in the copies; {_ADVICE}",
                TutelageWarning,
                stacklevel=2,
            )
        return model

    @torch.no_grad()
    def _take_back(self, model: Tapped, who: str) -> None:
        """Give a copy, made when the first may have been trained already, what the first held in the beginning."""
        tensors = _tensors(model)
        if {name: value.shape for name, value in tensors.items()} != {n: v.shape for n, v in self._initial.items()}:
            raise TutelageError(f"{who} was changed since its first use and cannot be copied for a cohort; {_ADVICE}")
        for name, value in tensors.items():
            value.copy_(self._initial[name])
            value.grad = None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _versions(model: nn.Module) -> list[int]:
    """How often each parameter was written to, so that an untrained network is known."""
    return [_version(value) for value in model.parameters()]


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _own(name: str) -> str:
    return name.removeprefix("module.")


def _reset(model: nn.Module, who: str) -> set[str]:
    """Let every module draw its parameters; the names of those that none of them has written to."""
    before = {name: (value, _version(value)) for name, value in model.named_parameters()}
    for module in dict.fromkeys(_inside_out(model)):
        reset = next((getattr(module, name) for name in _RESETS if callable(getattr(module, name, None))), None)
        if reset is None:
            continue
        try:
            reset()
        except Exception as error:  # whatever somebody else's class does
            raise TutelageError(
                f"{who} cannot be copied for a cohort: reset_parameters() of {type(module).__name__} fails: "
                f"{one_line(error)}; {_ADVICE}"
            ) from error
    now = dict(model.named_parameters())
    return {name for name, (value, version) in before.items() if now.get(name) is value and _version(value) == version}


def _inside_out(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _inside_out(child)
    yield module


def _differs(first: Tensor, drawn: Tensor) -> bool:
    """Whether two tensors cannot be draws from one distribution; constants must be equal."""
    if torch.equal(first, drawn) or first.shape != drawn.shape:
        return False
    if not first.is_floating_point():
        return True
    if first.numel() == 1:
        return False  # one draw says nothing about its distribution
    if is_constant(first) or is_constant(drawn):
        return True
    step = math.ceil(first.numel() / _COMPARED)
    a, b = (value.detach().flatten()[::step].float().sort().values for value in (first, drawn))
    return _apart(a, b) or _one_reaches_further(a, b)


def _apart(a: Tensor, b: Tensor) -> bool:
    """The test of Kolmogorov and Smirnov for two sorted samples of n values."""
    both = torch.cat([a, b])
    distance = (torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)).abs().max() / len(a)
    return float(distance) > math.sqrt(math.log(2 / _IMPROBABLE) / len(a))


def _one_reaches_further(a: Tensor, b: Tensor) -> bool:
    """Whether the k largest magnitudes of both are all from the same one, which has probability 2 ** (1 - k).

    Training moves weights beyond the bounds of a uniform distribution long before it changes the distribution as a
    whole.
    """
    k = math.ceil(1 - math.log2(_IMPROBABLE))
    largest = torch.cat([a, b]).abs().topk(min(k, 2 * len(a))).indices < len(a)
    return len(a) >= k and bool(largest.all() or not largest.any())
