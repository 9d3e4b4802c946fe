"""Stored inputs and outputs of blocks: as data, as a source of teacher outputs, and their computation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.arrays import as_floats
from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.modality import Modality
from tutelage.data.split import Split
from tutelage.errors import TutelageError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources.source import NO_COHORT, Cohort, Source
from tutelage.training.run import Run

BLOCK = "block"
"""The role of a block's output, in a network that is this block."""

BATCH = 256


@dataclass(frozen=True, slots=True)
class Activations(Modality):
    """Outputs of layers, any shape, float32; networks take them as they are."""

    noun: ClassVar[str] = "activations"

    def store(self, inputs: object, what: str) -> Tensor:
        """(N, ...) finite numbers to float32."""
        return as_floats(inputs, what, "activations (N, ...)", axes=range(2, 9), missing=False)


class StoredOutputs(Source):
    """The outputs of a block that were computed before, as the role ``block``.

    Args:
        outputs: (N, ...); that of a sample is at its index.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs

    def __call__(self, batch: Batch, roles: Collection[str] = (BLOCK,), cohort: Cohort = NO_COHORT) -> Outputs:
        """The outputs of the samples of a batch."""
        self.outputs = self.outputs.to(batch.index.device)  # once
        return Outputs(None, {BLOCK: self.outputs[batch.index]})


def activations_data(data: Data, inputs: Tensor) -> Data:
    """A data set without labels whose samples are the stored inputs of a block, (N, ...), in their order."""
    split = Split.of(inputs, torch.full((len(inputs),), -1), Activations(), data.targets)
    return Data(f"activations for {data.name}", data.classes, split, split)


def block_features(run: Run, model: Tapped, split: Split, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The inputs and the outputs of these blocks for all samples of a split, in eval mode, on the CPU.

    Raises:
        TutelageError: a block does not take or return one floating-point tensor.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    with _recorded(model.module, inputs, outputs):
        run.predict(model, split)
    # Concatenated outside of inference mode, so that they can be used in a loss.
    return {name: (torch.cat(inputs[name]).cpu(), torch.cat(outputs[name]).cpu()) for name in names}


@contextmanager
def _recorded(
    network: nn.Module, inputs: Mapping[str, list[Tensor]], outputs: Mapping[str, list[Tensor]]
) -> Iterator[None]:
    """A context in which copies of the inputs and outputs of modules are appended to lists."""

    def hook(name: str) -> Any:
        def store(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            outputs[name].append(_float_tensor(name, output))

        return store

    def pre_hook(name: str) -> Any:
        def store(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[name].append(_float_tensor(name, arguments[0]))

        return store

    modules = {name: network.get_submodule(name) for name in inputs}
    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    handles += [module.register_forward_pre_hook(pre_hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _float_tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float().clone()
    raise TutelageError(
        f"block {name!r} takes or returns no floating-point tensor, so it cannot be optimised alone; set block_share=0"
    )


def relative_error(block: nn.Module, inputs: Tensor, outputs: Tensor) -> float:
    """||f(x) - y||^2 / ||y||^2 over all samples, in eval mode.

    Args:
        block: f.
        inputs: x, (N, ...).
        outputs: y, (N, ...).
    """
    device = next(block.parameters()).device
    with eval_mode(block), torch.no_grad():
        parts = zip(torch.split(inputs, BATCH), torch.split(outputs, BATCH), strict=True)
        error = sum(float((block(x.to(device)).cpu() - y).square().sum()) for x, y in parts)
    power = float(outputs.square().sum())
    return error / power if power else error
