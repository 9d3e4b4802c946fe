"""The outputs of units, as vectors of samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches
from tutelage.models.capture import capture
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import fixed_draws
from tutelage.models.roles import Tap
from tutelage.models.tapped import Tapped


def unit_outputs(model: Tapped, units: Sequence[str], split: Split, *, pooled: bool) -> dict[str, Tensor]:
    """The outputs of modules for all samples of a split, without augmentation.

    Args:
        model: it runs in eval mode.
        units: names of modules of its network.
        split: the samples.
        pooled: whether maps (B, C, H, W) become their means (B, C), and tokens (B, N, D) means (B, D); otherwise all
            outputs are flattened.

    Returns:
        (n, D) on the CPU for each unit.
    """
    taps = {unit: Tap(unit, overwritten=True) for unit in units}
    chunks: dict[str, list[Tensor]] = {unit: [] for unit in units}
    with eval_mode(model), fixed_draws(model), torch.no_grad():
        for batch in evaluation_batches(split, device=model.mean.device, batch_size=128, workers=0):
            _, captured = capture(partial(model, batch.inputs), model.module, taps, stop=False)
            for unit in units:
                chunks[unit].append(_vectors(captured[unit], pooled).float().cpu())
    return {unit: torch.cat(parts) for unit, parts in chunks.items()}


def _vectors(output: Tensor, pooled: bool) -> Tensor:
    if pooled and output.ndim > 2:
        return output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2)
    return output.flatten(1)
