"""Prediction: a network's logits for every sample of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import fixed_draws
from tutelage.models.tapped import Tapped


@default_settings()
def predict(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device | str,
    batch_size: int = 512,
    amp: torch.dtype | None = None,
    workers: int = 2,
    seed: int = 0,
) -> Tensor:
    """Compute the logits of every sample of a split, in order, without augmentation.

    Args:
        model: maps raw inputs, for example images (B, C, H, W) in [0, 1], to logits (B, K), (B, L, K) for strings or
            (B, C, H, W) for dense predictions; it is on ``device`` already.
        split: the split.
        device: where to compute.
        batch_size: samples per forward pass; affects only speed and memory.
        workers: number of processes that read files.
        amp: the dtype of autocast; ``None`` computes in the model's dtype, even if the caller has enabled autocast.
        seed: of the random numbers of a random network.

    Returns:
        (N, K), (N, L, K) or (N, C, H, W), float32 on the device: not an inference tensor, so that it can be the target
        of a loss.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        TutelageError: the split is empty, or the model's output does not have this shape.
    """
    if len(split) == 0:
        raise TutelageError("there is no sample to predict: the split is empty")
    device = torch.device(device)
    chunks: list[Tensor] = []
    with (
        eval_mode(model),
        fixed_draws(model, seed),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
            chunks.append(batch_logits(model, batch.inputs))
    # Concatenated outside inference mode, so that the result can be used in a loss.
    logits = torch.cat(chunks)
    _check_finite(logits, split)
    return logits


@default_settings()
def predict_roles(
    model: Tapped, split: Split, roles: Sequence[str], *, device: torch.device | str, seed: int = 0
) -> Tensor:
    """Compute the outputs of these roles, each (B, K) or (B, K, L), concatenated along K; ``seed`` is as above."""
    for batch in evaluation_batches(split.subset(torch.arange(min(2, len(split)))), device=device, workers=0):
        model.trace(batch.inputs)  # tracing is not possible in inference mode
    return predict(_SideBySide(model, roles), split, device=device, seed=seed)


class _SideBySide(nn.Module):
    def __init__(self, model: Tapped, roles: Sequence[str]) -> None:
        super().__init__()
        self.model, self.roles = model, roles

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.model.tap(inputs, self.roles)
        return torch.cat([outputs[role] for role in self.roles], 1)


def batch_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the logits (B, K), (B, L, K) or (B, C, H, W) of one batch as float32.

    Raises:
        TutelageError: the model's output does not have this shape.
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3, 4) or len(logits) != len(inputs):
        raise TutelageError(
            f"the network returns {_describe(logits)} for a batch of {len(inputs)}; "
            f"give a network that returns logits ({len(inputs)}, classes)"
        )
    return logits.float()


def class_logits(model: nn.Module, who: str, data: Data, split: Split, device: torch.device | str) -> Tensor:
    """Compute a network's logits for a split; ``who`` describes the network in errors about its number of classes."""
    logits = predict(model, split, device=device)
    if logits.shape[1:] != (data.num_classes,):
        actual = logits.shape[1] if logits.ndim == 2 else tuple(logits.shape[1:])
        raise TutelageError(
            f"the {who} returns {actual} logits, but {data.name} has {data.num_classes} classes: "
            f"give its last layer {data.num_classes} outputs, or use data with as many classes"
        )
    return logits


def labelled_samples(split: Split) -> Split:
    """The labelled samples of a split, with soft labels replaced by their largest class.

    Raises:
        TutelageError: there is none.
    """
    hard = hard_labels(split.labels)
    indices = (hard != UNLABELLED).nonzero().squeeze(1)
    if len(indices) == 0:
        raise TutelageError(f"none of the {len(split)} samples has a label; evaluate on a split with labels")
    hardened = replace(split, labels=hard)
    return hardened if len(indices) == len(split) else hardened.subset(indices)


def _check_finite(logits: Tensor, split: Split) -> None:
    """Check all logits for NaN and infinity, once at the end: a check per batch would synchronise with the device."""
    non_finite = ~logits.flatten(1).isfinite().all(1)
    if non_finite.any():
        first = int(split.index[int(non_finite.int().argmax())])
        raise NonFiniteError(
            f"the network's logits are NaN or infinite for {int(non_finite.sum())} of {len(logits)} samples, "
            f"first for sample {first}: if training diverged, lower the learning rate; "
            "if not, turn mixed precision off"
        )


def _describe(output: object) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
