"""The data of a configuration: opened, under its conditions, with its held-out split."""

from __future__ import annotations

from dataclasses import replace

from tutelage.ambient import default_settings
from tutelage.config import Config
from tutelage.data.conditions import HumanLabels, Subset, parse_imbalance, parse_noise
from tutelage.data.data import Data
from tutelage.data.open import open_data


@default_settings()
def load_data(config: Config) -> Data:
    """Open a configuration's data set, apply its imbalance, subset and label noise, and hold out its validation split.

    Conditions are applied in this order: human labels, imbalance, subset, all other noise. A file of human labels has a
    row for each sample of the whole training split; other noise is drawn for the samples that remain.
    """
    data = open_data(
        config.data,
        image_size=config.image_size,
        test=config.test,
        skip_bad=config.skip_bad,
        whole=config.reads_whole_images,
        cache=config.cache,
    )
    if isinstance(config.augment, str):
        stored = tuple(data.train.inputs.shape[1:])
        data = replace(data, views=data.modality.named_views(config.augment, stored))
    elif not config.augment:
        data = replace(data, views=data.modality.unaugmented)
    if config.views is not None:
        data = replace(data, views=data.views.limited(config.views))
    noises = parse_noise(config.noise, config.seed) if config.noise is not None else ()
    imbalance = parse_imbalance(config.imbalance) if config.imbalance is not None else None
    subset = Subset(config.per_class, config.seed) if config.per_class is not None else None
    human = [noise for noise in noises if isinstance(noise, HumanLabels)]
    for condition in (*human, imbalance, subset, *noises[len(human) :]):
        data = condition(data) if condition else data
    return data.hold_out(config.validation, config.seed)
