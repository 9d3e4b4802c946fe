"""Samples as the features that a trained network computes from them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.data import Data, Split
from tutelage.data.modality import Vectors
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning, one_line
from tutelage.evaluation.embeddings import ROLE
from tutelage.evaluation.predict import predict_roles
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_trained


@default_settings()
def as_features(data: Data, network: str | nn.Module, device: torch.device) -> Data:
    """The data set with the features of a trained network in place of its inputs, without augmentation.

    Args:
        data: the data set.
        network: a run's folder, ``MODEL@WEIGHTS``, or a ``timm/`` or ``hf/`` name with published weights, of any
            classes, or a module that takes raw inputs. Its features are the input of its classifier. A named network
            resizes images to the size that its weights record.
        device: where to compute.

    Raises:
        TutelageError: there is no such network, it takes other inputs, or it has no classifier.
    """
    if isinstance(network, str):
        opened = open_trained(network, data, size="recorded")
        model = opened.model
        if opened.normalisation_is_assumed:
            warnings.warn(
                f"{network} records no normalization, so that of {data.name} is used; its features may be worse",
                TutelageWarning,
                stacklevel=3,
            )
    else:
        model = network if isinstance(network, Tapped) else Tapped(network)
    model = model.to(device).eval()
    name = network if isinstance(network, str) else type(network).__name__

    def computed(split: Split) -> Split:
        try:
            vectors = predict_roles(model, split, (ROLE,), device=device).cpu()
        except NETWORK_ERRORS as error:
            raise TutelageError(f"{name} computes no features of {data.name}: {one_line(error)}") from error
        if vectors.ndim != 2:
            raise TutelageError(
                f"the features of {name} have the shape {tuple(vectors.shape[1:])} for each sample; give a network "
                "whose classifier takes a vector"
            )
        return replace(split, inputs=vectors, modality=Vectors())

    views = Vectors().unaugmented
    validation = None if data.validation is None else computed(data.validation)
    return replace(data, train=computed(data.train), test=computed(data.test), validation=validation, views=views)
