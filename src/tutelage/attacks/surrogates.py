"""Gradients of layers that have none: backward pass differentiable approximation (BPDA: Athalye et al. 2018).

A module that is not differentiable, such as a front that rounds or compresses its input, declares replacements in an
attribute ``surrogates``: a mapping from names to differentiable functions of its input, (B, ...) to the shape of its
output. Every attack that follows gradients uses the first one unless its setting ``bpda`` names another or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError

DECLARED, NONE = "declared", "none"
"""The values of ``bpda`` beside names: the first replacement that each module declares, and no replacement."""

Replacement = Callable[[Tensor], Tensor]


def surrogates_of(model: nn.Module) -> dict[str, Mapping[str, Replacement]]:
    """The declared replacements by name, of each submodule that declares some."""
    declared = {name: getattr(module, "surrogates", None) for name, module in model.named_modules()}
    return {name: replacements for name, replacements in declared.items() if replacements}


@contextmanager
def declared_surrogates(model: nn.Module, bpda: str = DECLARED) -> Iterator[bool]:
    """A context in which modules that declare replacements return their outputs with the replacements' gradients.

    Args:
        model: its outputs do not change, nor does anything outside of the context.
        bpda: "declared" for the first replacement that each module declares, the name of another, or "none".

    Yields:
        Whether any module is replaced. Code of ``torch.compile`` ignores the replacements.

    Raises:
        TutelageError: a module declares replacements, and none of this name.
    """
    handles = []
    try:
        for name, replacements in surrogates_of(model).items() if bpda != NONE else ():
            if bpda not in (DECLARED, *replacements):
                raise TutelageError(
                    f"the layer {name!r} declares no surrogate gradient {bpda!r}; bpda must be "
                    f"{', '.join((DECLARED, NONE, *replacements))}"
                )
            chosen = next(iter(replacements.values())) if bpda == DECLARED else replacements[bpda]
            handles.append(model.get_submodule(name).register_forward_hook(_Hook(chosen)))
        yield bool(handles)
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    def __init__(self, replacement: Replacement) -> None:
        self.replacement = replacement

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return with_gradient_of(self.replacement, inputs[0], output)


def with_gradient_of(replacement: Replacement, inputs: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of ``replacement(inputs)``; ``value`` itself where no gradient is needed.

    Raises:
        ValueError: the replacement returns another shape.
    """
    if not (torch.is_grad_enabled() and inputs.requires_grad):
        return value
    smooth = replacement(inputs)
    if smooth.shape != value.shape:
        raise ValueError(
            f"the replacement returns {tuple(smooth.shape)} and the layer {tuple(value.shape)}; "
            "give a replacement with an output of the same shape"
        )
    result: Tensor = _Replaced.apply(smooth, value)  # type: ignore[no-untyped-call]
    return result


class _Replaced(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SurrogateGradient(nn.Module):
    """A layer whose gradient is that of a differentiable replacement (BPDA: Athalye et al. 2018, arXiv 1802.00420).

    The output is exactly ``layer(x)``; the gradient is that of ``replacement(x)``. Wrap a step of a defence that has
    no useful gradient and declares no replacement, such as rounding or compression, or a whole network, and attack the
    result:

        PGD(radius=0.03)(nn.Sequential(SurrogateGradient(rounding), network), images, labels)

    Args:
        layer: any function of a tensor.
        replacement: a differentiable function with an output of the same shape; the identity by default.
    """

    def __init__(self, layer: Any, replacement: Any = None) -> None:
        super().__init__()
        self.layer, self.replacement = layer, nn.Identity() if replacement is None else replacement

    def forward(self, inputs: Tensor) -> Tensor:
        """``layer(inputs)``."""
        with torch.no_grad():
            value: Tensor = self.layer(inputs)
        return with_gradient_of(self.replacement, inputs, value)
