"""``Tapped``: a network with its input normalisation, whose features can be read by role."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.capture import capture
from tutelage.models.compiled import CompiledForward
from tutelage.models.derived_role import DerivedRole
from tutelage.models.inputs import call_arguments, is_image, normalise, resize, sample_count
from tutelage.models.outputs import Outputs, at_least_float32, logits_of
from tutelage.models.roles import Tap, declared_roles, find_roles, parse_roles


class Tapped(nn.Module):
    """A network that normalises raw inputs and returns logits; ``tap`` also returns the features of layers.

    Called as a module, it maps raw inputs, for images (B, C, H, W) pixels in [0, 1], to (B, classes) logits. ``tap``
    adds hooks for the requested roles and removes them after the call.

    The network may take several inputs, by position or by name; a tuple or list then holds the positional inputs and a
    mapping the keyword inputs. It may return a tensor, a mapping or an object with ``logits`` (as Hugging Face models
    do), or a tuple that begins with the logits.

    Args:
        module: any ``nn.Module`` from normalised inputs to logits. Its parameters and key names do not change: save
            ``tapped.module.state_dict()``.
        mean, std: normalisation of floating-point inputs along axis 1, for images one number per channel (or one for
            all). The defaults 0 and 1 leave inputs unchanged, for a network that normalises its inputs itself. Of
            several inputs only images (B, C, H, W) are normalised. Integers, such as token ids, are never changed. A
            network with an attribute ``takes_pixels`` that is true gets pixels as they are, whatever is given here.
        roles: role to layer name; ``"input:fc"`` is the input of ``fc``. Otherwise the mapping ``roles`` of the module
            is used, if it has one, and all other roles are found by tracing.
        size: (height, width) to which images are resized before the normalisation, by an antialiased bilinear filter on
            their device: for a teacher of another image size than the student's. ``None`` for no change.

    Attributes:
        passes: how many samples ``tap`` has run, a measure of the cost of training. A pass that stops early counts
            fully. Calls of the model itself, as in evaluation, do not count.
        contiguous: whether inputs in another memory layout are made contiguous first, for networks that require it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        roles: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(module, Tapped):
            raise TutelageError("Tapped(...) of a Tapped normalises twice; give it the bare network, its .module")
        if getattr(module, "takes_pixels", False):
            mean, std = (0.0,), (1.0,)
        self.module = module
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._identity = tuple(mean) == (0.0,) and tuple(std) == (1.0,)
        self._manual_taps = parse_roles(module, roles if roles is not None else declared_roles(module))
        self._roles_argument = dict(roles or {})
        self.size = None if size is None else _checked_size(size)
        self.passes = 0
        self.contiguous = False
        self._taps: dict[str, Tap] | None = None
        self._compiled: CompiledForward | None = None

    def forward(self, inputs: Any = None, /, *args: Any, **kwargs: Any) -> Tensor:
        """Raw inputs (B, ...) to (B, classes) logits.

        Raises:
            TutelageError: the inputs do not have the channels of the normalisation, or the network returns no logits.
        """
        if isinstance(inputs, Tensor) and not args and not kwargs:
            output = self.module(self.normalised(inputs))
        else:
            positional, keywords = self._module_arguments(inputs, *args, **kwargs)
            output = self.module(*positional, **keywords)
        return output if isinstance(output, Tensor) else logits_of(self.module, output)

    def _module_arguments(
        self, inputs: Any = None, /, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The normalised positional and keyword arguments of ``module``, from the arguments of this model."""
        if args or kwargs:
            positional = (inputs, *args) if args or inputs is not None else ()
        else:
            positional, kwargs = call_arguments(inputs)
            if len(positional) == 1 and isinstance(positional[0], Tensor):
                return (self.normalised(positional[0]),), {}
        return (
            tuple(self.normalised(value) if is_image(value) else value for value in positional),
            {name: self.normalised(value) if is_image(value) else value for name, value in kwargs.items()},
        )

    def normalised(self, inputs: Tensor) -> Tensor:
        """Raw inputs (B, ...) as ``module`` takes them: images resized to ``size``, floats normalised along axis 1.

        Without a ``size``, integers are unchanged.

        Raises:
            TutelageError: the inputs do not have the channels of the normalisation, or are no images and there is a
                ``size``.
        """
        if self.contiguous:
            # A copy, since the strides of one channel count as contiguous and as channels-last at once.
            inputs = inputs.clone(memory_format=torch.contiguous_format)
        if self.size is not None:
            inputs = resize(inputs, self.size)
        if self._identity or not inputs.is_floating_point():
            return inputs
        return normalise(inputs, self.mean, self.std)

    def rewrapped(self) -> Tapped:
        """A new ``Tapped`` of the same network, after surgery changed it; its roles are found again.

        It has the same size and normalisation, the same roles named by hand, and the roles that the surgery added.
        """
        return self.with_roles({})

    def with_roles(self, roles: Mapping[str, str]) -> Tapped:
        """A new ``Tapped`` of the same network with more roles named by hand; the layer ``""`` is the whole network."""
        roles = {**self._roles_argument, **declared_roles(self.module), **roles}
        return Tapped(self.module, *self._mean_std, roles or None, self.size)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Tapped:
        """A new ``Tapped`` of the same network with this normalisation, and the same size and roles named by hand."""
        return Tapped(self.module, mean, std, self._roles_argument or None, self.size)

    def copy_normalisation(self, other: Tapped) -> None:
        """Normalise inputs as another network does, from now on."""
        self.mean, self.std, self._identity = other.mean.clone(), other.std.clone(), other._identity

    def with_size(self, size: tuple[int, int]) -> Tapped:
        """A new ``Tapped`` of the same network that resizes images to (height, width), with the same roles."""
        resized = Tapped(self.module, *self._mean_std, self._roles_argument or None, size)
        return resized.train(self.training)

    @property
    def _mean_std(self) -> tuple[list[float], list[float]]:
        return self.mean.flatten().tolist(), self.std.flatten().tolist()

    def has_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether this is the normalisation, up to rounding."""
        pairs = ((self.mean, mean), (self.std, std))
        return all(torch.allclose(own.flatten().cpu(), torch.tensor(other, dtype=own.dtype)) for own, other in pairs)

    @property
    def manual_roles(self) -> frozenset[str]:
        """The roles named by hand, by the caller or by the network itself."""
        return frozenset(self._manual_taps)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Role to layer; before ``trace`` only the roles named by hand."""
        return self._taps or self._manual_taps

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, first to last."""
        stages = (role for role in self.taps if role.startswith("stage") and role[5:].isdecimal())
        return tuple(sorted(stages, key=lambda role: int(role[5:])))

    @property
    def maps(self) -> tuple[str, ...]:
        """The stages, preceded by the stem (the input of the first stage) if it was found."""
        return ("stem", *self.stages) if "stem" in self.taps else self.stages

    def trace(self, inputs: Any) -> Tapped:
        """Find the roles by one forward pass over raw inputs (B, ...), unless this has been done. Returns the model."""
        if self._taps is None:
            positional, named = self._module_arguments(inputs)
            self._taps = find_roles(self.module, named or positional, self._manual_taps)
        return self

    def with_parameters(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The logits for other parameters, twice differentiable with respect to them.

        Args:
            parameters: by the names of ``named_parameters()``; the network's own parameters stand in for missing ones.
            inputs: raw inputs (B, ...); images are (B, C, H, W) pixels in [0, 1].

        Returns:
            (B, classes) logits, at least float32. Buffers of the network are not updated, in train mode either.
        """
        self.passes += len(inputs)
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        logits: Tensor = torch.func.functional_call(self, {**buffers, **parameters}, (inputs,))
        return at_least_float32(logits)

    def tap(self, inputs: Any, roles: Collection[str] = ("logits",), *, eager: bool = False) -> Outputs:
        """Run the network and return the requested roles.

        Args:
            inputs: raw inputs (B, ...); images are (B, C, H, W) pixels in [0, 1]. For a network with several inputs a
                tuple or list of positional inputs, or a mapping of keyword inputs.
            roles: ``"logits"``, roles of ``taps`` and derived roles of these. Without ``"logits"`` the pass stops at
                the last requested role: later layers are not computed, and in train mode their buffers not updated.
            eager: do not use compiled code, even after ``compile``.

        Returns:
            Outputs with exactly these roles, in float32 (or float64).

        Raises:
            TutelageError: there is no such role, or its layer does not run.
        """
        if any(isinstance(role, DerivedRole) for role in roles):
            bases = [base for role in roles for base in (role.bases if isinstance(role, DerivedRole) else (role,))]
            return self.tap(inputs, bases, eager=eager).select(roles)
        self.passes += sample_count(inputs)  # outside of the code that torch.compile sees
        compiled = None if eager else self._compiled
        features = [role for role in dict.fromkeys(roles) if role != "logits"]
        if not features:
            return Outputs(at_least_float32((compiled or self)(inputs)))
        self.trace(inputs)
        for role in features:
            if role not in self.taps:
                raise TutelageError(
                    f"{type(self.module).__name__} has no role {role!r}; it has {', '.join(self.taps) or 'none'}. "
                    'Name its layers by hand, for example roles={"stage1": "layer1"}'
                )
        taps = {role: self.taps[role] for role in features}
        logits: Tensor | None
        if compiled is not None and "logits" in roles:
            logits, captured = compiled.tap(inputs, self.module, taps)
        else:
            logits, captured = capture(lambda: self(inputs), self.module, taps, stop="logits" not in roles)
        for role, tap in taps.items():
            if role not in captured:
                raise TutelageError(
                    f"layer {tap.layer!r} of {type(self.module).__name__}, named as {role!r}, does not run; "
                    "name another"
                )
        values = {role: at_least_float32(tap.read(role, captured[role])) for role, tap in taps.items()}
        return Outputs(None if logits is None else at_least_float32(logits), values)

    def compile(self, *args: Any, **options: Any) -> None:
        """Run through ``torch.compile`` from now on, also in ``tap``; parameters and key names do not change."""
        self.uncompile()
        self._compiled = CompiledForward(self, *args, **options)

    def uncompile(self) -> None:
        """Run without ``torch.compile`` again."""
        if self._compiled is not None:
            self._compiled.discard()
        self._compiled = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, which is not compiled: the compiled code would run the original network."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.uncompile()


def _checked_size(size: object) -> tuple[int, int]:
    """(height, width), after a check."""
    sides = tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise TutelageError(f"size={size!r} is no image size; give (height, width) in pixels, such as (224, 224)")
    height, width = sides
    return height, width


def as_tapped(caller: str, model: object) -> Tapped:
    """The network as a ``Tapped``; a bare ``nn.Module`` is wrapped without normalisation. Errors name the caller.

    Raises:
        TutelageError: ``model`` is not an ``nn.Module``.
    """
    if isinstance(model, nn.Module):
        return model if isinstance(model, Tapped) else Tapped(model)
    raise TutelageError(f"{caller} takes networks and was given a {type(model).__name__}; give an nn.Module")


def check_tapped(caller: str, *models: object) -> None:
    """Check that students or teachers are ``Tapped``: the normalisation of a bare ``nn.Module`` is unknown.

    Raises:
        TutelageError: one of them is not.
    """
    for model in models:
        if not isinstance(model, Tapped):
            raise TutelageError(
                f"{caller} takes networks wrapped as Tapped(module, mean, std) and was given a {type(model).__name__}; "
                "write Tapped(module) if the network takes pixels in [0, 1] as they are"
            )
