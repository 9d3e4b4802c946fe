"""Any classifier, with its own normalisation and with layers that can be read by role."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.capture import capture
from tutelage.models.compiled import CompiledForward
from tutelage.models.derived_role import DerivedRole
from tutelage.models.inputs import call_arguments, is_image, sample_count
from tutelage.models.outputs import Outputs, at_least_float32, describe_output, find_logits
from tutelage.models.roles import Tap, declared_roles, find_roles, parse_roles


class Tapped(nn.Module):
    """A network that takes raw inputs, gives logits, and can be tapped.

    Called as a module it maps raw inputs, of images (B, C, H, W) pixels in [0, 1], to (B, classes) logits, normalising
    first. ``tap`` gives the features of the roles that are asked for as well; its hooks live only during that call.

    The module may take several inputs, by position or by name; where one object stands for all of them, a tuple or a
    list holds positional and a mapping keyword inputs. It may return a tensor, a mapping or an object with ``logits``
    (as models of Hugging Face do), or a tuple that begins with them.

    Args:
        module: any ``nn.Module`` from normalised inputs to logits. Its own parameters and key names are untouched:
            ``tapped.module.state_dict()`` is what belongs in a file.
        mean, std: normalisation of a floating input along axis 1, of images per channel, each of length C (or 1); 0 and
            1, which leave any input as it is, for a module that normalises for itself. Of several inputs only images
            (B, C, H, W) are normalised. Integers, token numbers for instance, pass unchanged.
        roles: role to layer name, to name them by hand (``"input:fc"`` is what ``fc`` is given). Otherwise a ``roles``
            mapping on the module is used, and what that leaves open is found by tracing.

    Attributes:
        passes: how many samples ``tap`` has run, ever: what a training costs. A pass that stops early counts as one;
            calls of the model by itself, as evaluation makes them, do not count.
        contiguous: whether inputs in another memory layout are made contiguous first, for a network that needs it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        roles: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(module, Tapped):
            raise TutelageError("Tapped(...) of a Tapped normalises twice; give it the bare network, its .module")
        self.module = module
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._as_they_are = tuple(mean) == (0.0,) and tuple(std) == (1.0,)
        self._by_hand = parse_roles(module, roles if roles is not None else declared_roles(module))
        self._named = dict(roles or {})
        self.passes = 0
        self.contiguous = False
        self._taps: dict[str, Tap] | None = None
        self._compiled: CompiledForward | None = None

    def forward(self, inputs: Any = None, /, *more: Any, **named: Any) -> Tensor:
        """Raw inputs (B, ...) to (B, classes) logits.

        Raises:
            TutelageError: the inputs have other channels than the normalisation, or the network returns no logits.
        """
        if isinstance(inputs, Tensor) and not more and not named:
            returned = self.module(self.normalised(inputs))
        else:
            positional, keywords = self._prepared(inputs, *more, **named)
            returned = self.module(*positional, **keywords)
        return returned if isinstance(returned, Tensor) else self._logits(returned)

    def _prepared(self, inputs: Any = None, /, *more: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the bare network, from those that this model was called with."""
        if named or more:
            positional = (inputs, *more) if more or inputs is not None else ()
        else:
            positional, named = call_arguments(inputs)
            if len(positional) == 1 and isinstance(positional[0], Tensor):
                return (self.normalised(positional[0]),), {}
        return (
            tuple(self.normalised(value) if is_image(value) else value for value in positional),
            {name: self.normalised(value) if is_image(value) else value for name, value in named.items()},
        )

    def normalised(self, inputs: Tensor) -> Tensor:
        """Raw inputs (B, ...) as the bare network takes them: floats normalised along axis 1, integers unchanged.

        Raises:
            TutelageError: the inputs have other channels than the normalisation.
        """
        if self.contiguous:
            # A copy, since the strides of one channel count as contiguous and as channels-last at once.
            inputs = inputs.clone(memory_format=torch.contiguous_format)
        if self._as_they_are or not inputs.is_floating_point():
            return inputs
        channels = max(self.mean.shape[1], self.std.shape[1])
        if inputs.ndim < 2 or channels not in (1, inputs.shape[1]):
            expected = "(B, C, ...)" if channels == 1 else f"(B, {channels}, ...), of images (B, {channels}, H, W),"
            raise TutelageError(
                f"Tapped normalises inputs of shape {expected} and was given {tuple(inputs.shape)}; "
                "call its .module for other inputs"
            )
        mean, std = self.mean, self.std
        if inputs.ndim != mean.ndim:
            along = (1, -1, *[1] * (inputs.ndim - 2))
            mean, std = mean.view(along), std.view(along)
        return (inputs - mean) / std

    def rewrapped(self) -> Tapped:
        """This model once more, after its network was changed from the inside: roles are found anew.

        The normalisation stays, and so do roles named by hand, to which the network may have added some.
        """
        return self.with_roles({})

    def with_roles(self, roles: Mapping[str, str]) -> Tapped:
        """This model once more, with further roles named by hand; ``""`` is the whole network."""
        roles = {**self._named, **declared_roles(self.module), **roles}
        return Tapped(self.module, self.mean.flatten().tolist(), self.std.flatten().tolist(), roles or None)

    @property
    def manual_roles(self) -> frozenset[str]:
        """The roles named by hand, by the caller or by the network itself."""
        return frozenset(self._by_hand)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Role to layer; empty before ``trace``."""
        return self._taps or self._by_hand

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, first to last."""
        numbered = (role for role in self.taps if role.startswith("stage") and role[5:].isdecimal())
        return tuple(sorted(numbered, key=lambda role: int(role[5:])))

    @property
    def maps(self) -> tuple[str, ...]:
        """The stages, and before them the stem, what the first stage is given, if it could be told."""
        return ("stem", *self.stages) if "stem" in self.taps else self.stages

    def trace(self, inputs: Any) -> Tapped:
        """Find the roles by one forward pass over raw inputs (B, ...), unless that is done already."""
        if self._taps is None:
            positional, named = self._prepared(inputs)
            self._taps = find_roles(self.module, named or positional, self._by_hand)
        return self

    def with_parameters(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What the network would give with other parameters: differentiable by them, also twice.

        Args:
            parameters: by the names of ``named_parameters()``; those that are missing are the network's own.
            inputs: raw, (B, ...); of images (B, C, H, W) pixels in [0, 1].

        Returns:
            (B, classes) logits, at least float32. No buffer of the network moves, in train mode neither.
        """
        self.passes += len(inputs)
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        logits: Tensor = torch.func.functional_call(self, {**buffers, **parameters}, (inputs,))
        return at_least_float32(logits)

    def tap(self, inputs: Any, roles: Collection[str] = ("logits",), *, eager: bool = False) -> Outputs:
        """Run the network and capture what is asked for.

        Args:
            inputs: raw, (B, ...); of images (B, C, H, W) pixels in [0, 1]. A tuple or list of positional inputs, or a
                mapping of keyword inputs, for a network that takes several.
            eager: whether to do without ``torch.compile``, if it is on.
            roles: ``"logits"``, roles of ``taps`` and digests of them. Without ``"logits"`` the pass stops at the last
                role asked for: what lies behind it is neither computed nor, in train mode, are its buffers touched.

        Returns:
            Outputs in float32 (or float64), with exactly these roles.
        """
        if any(isinstance(role, DerivedRole) for role in roles):
            bases = [base for role in roles for base in (role.bases if isinstance(role, DerivedRole) else (role,))]
            return self.tap(inputs, bases, eager=eager).select(roles)
        self.passes += sample_count(inputs)  # out here, where torch.compile does not see it
        compiled = None if eager else self._compiled
        wanted = [role for role in dict.fromkeys(roles) if role != "logits"]
        if not wanted:
            return Outputs(at_least_float32((compiled or self)(inputs)))
        self.trace(inputs)
        for role in wanted:
            if role not in self.taps:
                raise TutelageError(
                    f"{type(self.module).__name__} has no role {role!r}; it has {', '.join(self.taps) or 'none'}. "
                    'Name its layers by hand, for instance roles={"stage1": "layer1"}'
                )
        taps = {role: self.taps[role] for role in wanted}
        logits: Tensor | None
        if compiled is not None and "logits" in roles:
            logits, captured = compiled.tap(inputs, self.module, taps)
        else:
            logits, captured = capture(lambda: self(inputs), self.module, taps, stop="logits" not in roles)
        for role in wanted:
            if role not in captured:
                layer = self.taps[role].layer
                raise TutelageError(
                    f"layer {layer!r} of {type(self.module).__name__}, named as {role!r}, does not run; name another"
                )
        features = {role: at_least_float32(self.taps[role].read(role, captured[role])) for role in wanted}
        return Outputs(None if logits is None else at_least_float32(logits), features)

    def _logits(self, returned: object) -> Tensor:
        logits = find_logits(returned)
        if logits is None:
            mode = "train" if self.module.training else "eval"
            raise TutelageError(
                f"{type(self.module).__name__} returns no logits in {mode} mode, but {describe_output(returned)}; "
                "give a network that returns logits (B, classes): a tensor, a tuple that begins with it, or a mapping "
                "or an object with 'logits'"
            )
        return logits

    def compile(self, *args: Any, **options: Any) -> None:
        """Run through ``torch.compile`` from now on, taps included; parameters and key names stay as they are.

        Tapped layers get hooks that stay, since compiled code cannot grow them call by call.
        """
        self.uncompile()
        self._compiled = CompiledForward(self, *args, **options)

    def uncompile(self) -> None:
        """Run as written again."""
        if self._compiled is not None:
            self._compiled.discard()
        self._compiled = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is not compiled: that code runs the network it was made from."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.uncompile()


def as_tapped(who: str, model: object) -> Tapped:
    """A network as a ``Tapped``; a bare ``nn.Module`` is then given its inputs as they are, without normalisation.

    Raises:
        TutelageError: it is no network.
    """
    if isinstance(model, nn.Module):
        return model if isinstance(model, Tapped) else Tapped(model)
    raise TutelageError(f"{who} takes networks and was given a {type(model).__name__}; give an nn.Module")


def check_tapped(who: str, *models: object) -> None:
    """Check that what is to learn or to teach is a ``Tapped``.

    Raises:
        TutelageError: it is a bare ``nn.Module``, whose normalisation only its owner knows, or no network.
    """
    for model in models:
        if not isinstance(model, Tapped):
            raise TutelageError(
                f"{who} takes networks wrapped as Tapped(module, mean, std) and was given a {type(model).__name__}; "
                "write Tapped(module) if the network takes pixels in [0, 1] as they are"
            )
