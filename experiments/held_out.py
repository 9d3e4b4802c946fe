"""Training images that are held out for tuning."""

from __future__ import annotations

from dataclasses import replace

import torch

from tutelage.data import Data, Split


def hold_out(data: Data, count: int) -> tuple[Data, Split]:
    """The data without the last ``count`` training samples, and these samples."""
    indices = torch.arange(len(data.train))
    return replace(data, train=data.train.subset(indices[:-count])), data.train.subset(indices[-count:])
