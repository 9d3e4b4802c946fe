"""Memorisation of wrong training labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.data.batch import hard_labels
from tutelage.data.data import Data
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import accuracy, memorised, wrongly_labelled
from tutelage.evaluation.predict import class_logits


@default_settings()
def memorisation(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Evaluate a classifier on the training split, without augmentation, by the given and the clean labels.

    Returns:
        ``wrong_labels`` (their number), ``memorised`` (the share of them that the network predicts, ``None`` if no
        label is wrong), ``train_accuracy_clean`` and ``train_accuracy_given``.

    Raises:
        TutelageError: the network has another number of classes than the data.
    """
    logits = class_logits(model, "network", data, data.train, device)
    labels = hard_labels(data.train.labels).to(logits.device)
    clean = data.train.clean_labels.to(logits.device)
    return {
        "wrong_labels": int(wrongly_labelled(labels, clean).sum()),
        "memorised": json_number(memorised(logits, labels, clean)),
        "train_accuracy_clean": json_number(accuracy(logits, clean)),
        "train_accuracy_given": json_number(accuracy(logits, labels)),
    }
