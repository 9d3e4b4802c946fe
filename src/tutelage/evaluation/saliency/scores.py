"""The metrics of a network's saliency maps, for each image of a split.

The map of a network is the logistic function of its logits, scaled bilinearly to the size of the stored labels if its
size differs. The official code of FastSal also blurs it with a Gaussian of 5 x 5 pixels at the original size of
several hundred pixels; at the size of the stored labels, which may be ten times smaller, this would be another blur,
so it is left out. Its scaling to [0, 1] changes none of CC, NSS and the areas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.evaluation.saliency.metrics import Ranks, cc, centre_prior, exact, kl, nss, sim
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import fixed_draws

METRICS = ("cc", "nss", "auc_judd", "auc_borji", "auc_shuffled", "sim", "kl")
BATCH = 32


@default_settings()
def map_scores(
    model: nn.Module,
    split: Split,
    *,
    metrics: Collection[str] = METRICS,
    device: torch.device | str,
    amp: torch.dtype | None = None,
    workers: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The metrics of a network's map for each image of a split: (N,) float64 each, on the CPU.

    A value is NaN for an image whose labels do not define it.

    Args:
        model: maps images (B, C, H, W) to logits (B, 1, h, w); it is on ``device`` already.
        split: labels are those of ``Maps``.
        metrics: some of ``METRICS``.
        device, amp, workers, seed: as in ``predict``.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        TutelageError: the split is empty, or the output has another shape.
    """
    device = torch.device(device)
    fixations = _all_fixations(split.labels).to(device)
    batches = []
    with (
        eval_mode(model),
        fixed_draws(model, seed),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        for batch in evaluation_batches(split, device=device, batch_size=BATCH, workers=workers):
            maps = predict_maps(model, batch.inputs, batch.targets.shape[2:])
            batches.append(_scores(maps, batch.targets, fixations, metrics))
    return _joined(batches)


def centre_scores(split: Split, metrics: Collection[str] = METRICS) -> dict[str, Tensor]:
    """As ``map_scores``, of the centred Gaussian instead of a network: what any useful prediction exceeds."""
    prior = centre_prior(*split.labels.shape[2:]).to(split.labels.device)
    fixations = _all_fixations(split.labels)
    chunks = torch.split(split.labels, BATCH)
    return _joined(_scores(prior.expand(len(labels), -1, -1), labels, fixations, metrics) for labels in chunks)


def predict_maps(model: nn.Module, inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    """A network's maps (B, H, W) in [0, 1] of this size, for inputs (B, ...).

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        TutelageError: the output is not (B, 1, h, w).
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[:2] != (len(inputs), 1):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TutelageError(
            f"the network returns {shape} for a batch of {len(inputs)} images; give a network that returns a map of "
            f"logits for each, ({len(inputs)}, 1, H, W)"
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            "the network's logits are NaN or infinite: if training diverged, lower the learning rate; "
            "if not, turn mixed precision off"
        )
    maps = logits.float().sigmoid()
    if maps.shape[2:] != tuple(size):
        maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return maps[:, 0]


def _scores(maps: Tensor, labels: Tensor, fixations: Tensor, metrics: Collection[str]) -> dict[str, Tensor]:
    """The metrics of maps (B, H, W) with labels (B, 2, H, W); ``fixations`` (H, W) are those of all images."""
    density, own = labels.unbind(1)
    others = fixations - own.nan_to_num(0)
    ranks = cache(lambda: Ranks(maps))  # sorted once, and only if an area is wanted
    functions: dict[str, Callable[[], Tensor]] = {
        "cc": lambda: cc(maps, density),
        "nss": lambda: nss(maps, own),
        "auc_judd": lambda: ranks().auc_judd(own),
        "auc_borji": lambda: ranks().auc_borji(own),
        "auc_shuffled": lambda: ranks().auc_shuffled(own, others),
        "sim": lambda: sim(maps, density),
        "kl": lambda: kl(maps, density),
    }
    return {name: functions[name]() for name in METRICS if name in metrics}


def _all_fixations(labels: Tensor) -> Tensor:
    """How many fixations of all images fell on each pixel, (H, W)."""
    total = torch.zeros(labels.shape[2:], device=labels.device)
    for chunk in torch.split(labels[:, 1], 256):  # without a copy of all labels
        total = total + chunk.nan_to_num(0).sum(0)
    return exact(total)


def _joined(batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    collected = [{name: values.cpu().double() for name, values in scores.items()} for scores in batches]
    if not collected:
        raise TutelageError("there is no image to evaluate: the split is empty")
    return {name: torch.cat([scores[name] for scores in collected]) for name in collected[0]}
