"""The networks of a cohort: from a function, or copies of one network with reinitialised weights."""

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
_ADVICE = "give a function that returns the network, for example student=make_network"
_MAX_COMPARED = 4096  # elements of a parameter that are compared
_SIGNIFICANCE = 1e-6  # per parameter: probability that equal distributions are judged to differ


class ModelFactory:
    """Makes the networks of a cohort by a function. It warns once if the function returns the same weights each time.

    Args:
        make: returns a network, whose weights are drawn from torch's global generator.
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
            self._first = model, []  # matches no network, so that there is only one warning
            warnings.warn(
                f"the function that makes the students returns a {type(model.module).__name__} with the same weights "
                "each time, so that all networks of a cohort start equal; initialise the weights in it",
                TutelageWarning,
                stacklevel=2,
            )
        return model


class CopyFactory:
    """Makes the networks of a cohort from one network: itself first, then copies with reinitialised weights.

    A copy starts from the initial state of the original, even after that has been trained. Then ``reset_parameters()``
    of each of its modules is called, inner modules before outer ones, with torch's global generator. A network with a
    custom initialisation must have a ``reset_parameters`` itself.

    If the weights of the original are not distributed as its modules initialise them, because it was trained or
    initialised otherwise, one warning says that the copies are not.

    Args:
        original: the network; it is not changed here.
    """

    def __init__(self, original: Tapped) -> None:
        self.original = original
        self._initial: dict[str, Tensor] = {}
        self._warned = False

    def __call__(self) -> Tapped:
        """The next network.

        Raises:
            TutelageError: the network cannot be copied, or its modules do not reinitialise one of its parameters.
        """
        if not self._initial:
            self._initial = {name: value.detach().clone() for name, value in _tensors(self.original).items()}
            return self.original
        name = type(self.original.module).__name__
        model = copy_network(self.original, name, f"this method trains several networks: {_ADVICE}")
        self._restore_initial(model, name)
        not_reset = _reset(model, name)
        for key, value in model.named_parameters():
            initial = self._initial[key]
            needs_reset = key in not_reset and value.requires_grad and not is_constant(initial)
            if needs_reset and torch.equal(initial, value):
                raise TutelageError(
                    f"{name} cannot be copied for a cohort: no reset_parameters() reinitialises {_bare(key)!r}, so "
                    f"that all networks would start with the same values; {_ADVICE}"
                )
        lost = next((key for key, value in _tensors(model).items() if _differs(self._initial[key], value)), None)
        if lost is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"the other networks of this cohort are copies of {name} with reinitialised weights, and "
                f"{_bare(lost)!r} of the first has another distribution: its training or initialisation is lost in the "
                f"copies; {_ADVICE}",
                TutelageWarning,
                stacklevel=2,
            )
        return model

    @torch.no_grad()
    def _restore_initial(self, model: Tapped, name: str) -> None:
        """Set a copy to the initial state of the original, which may have been trained since."""
        tensors = _tensors(model)
        if {key: value.shape for key, value in tensors.items()} != {k: v.shape for k, v in self._initial.items()}:
            raise TutelageError(f"{name} was changed since its first use and cannot be copied for a cohort; {_ADVICE}")
        for key, value in tensors.items():
            value.copy_(self._initial[key])
            value.grad = None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _versions(model: nn.Module) -> list[int]:
    """The version counter of each parameter, which shows whether it has been written to."""
    return [_version(value) for value in model.parameters()]


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _reset(model: nn.Module, network: str) -> set[str]:
    """Call ``reset_parameters`` of every module. Returns the names of parameters that no module has written to."""
    before = {key: (value, _version(value)) for key, value in model.named_parameters()}
    for module in dict.fromkeys(_inside_out(model)):
        reset = next((getattr(module, name) for name in _RESETS if callable(getattr(module, name, None))), None)
        if reset is None:
            continue
        try:
            reset()
        except Exception as error:  # a user's class may raise anything
            raise TutelageError(
                f"{network} cannot be copied for a cohort: reset_parameters() of {type(module).__name__} fails: "
                f"{one_line(error)}; {_ADVICE}"
            ) from error
    after = dict(model.named_parameters())
    return {key for key, (value, version) in before.items() if after.get(key) is value and _version(value) == version}


def _inside_out(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _inside_out(child)
    yield module


def _differs(first: Tensor, reset: Tensor) -> bool:
    """Whether two tensors are from different distributions; constants must be equal."""
    if torch.equal(first, reset) or first.shape != reset.shape:
        return False
    if not first.is_floating_point():
        return True
    if first.numel() == 1:
        return False  # one value says nothing about its distribution
    if is_constant(first) or is_constant(reset):
        return True
    step = math.ceil(first.numel() / _MAX_COMPARED)
    a, b = (value.detach().flatten()[::step].float().sort().values for value in (first, reset))
    return _ks_test(a, b) or _extremes_differ(a, b)


def _ks_test(a: Tensor, b: Tensor) -> bool:
    """Whether the Kolmogorov-Smirnov test rejects equal distributions, for two sorted samples of n values."""
    both = torch.cat([a, b])
    distance = (torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)).abs().max() / len(a)
    return float(distance) > math.sqrt(math.log(2 / _SIGNIFICANCE) / len(a))


def _extremes_differ(a: Tensor, b: Tensor) -> bool:
    """Whether the k largest magnitudes of both samples are all from one of them (probability 2 ** (1 - k) by chance).

    Training moves weights beyond the bounds of a uniform distribution long before the Kolmogorov-Smirnov test rejects.
    """
    k = math.ceil(1 - math.log2(_SIGNIFICANCE))
    largest = torch.cat([a, b]).abs().topk(min(k, 2 * len(a))).indices < len(a)
    return len(a) >= k and bool(largest.all() or not largest.any())
