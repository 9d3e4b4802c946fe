"""Opening the trained networks of the commands ``evaluate`` and ``export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.config import Normalization

if TYPE_CHECKING:
    from tutelage.data import Data
    from tutelage.runs.models import TrainedModel


def open_networks(names: list[str], data: Data, mean: str | None, std: str | None, trust: bool) -> list[TrainedModel]:
    """Open trained networks, and print where their normalization comes from if their weights do not record it.

    ``mean`` and ``std`` apply to the networks whose weights record none. All but the first network are teachers, which
    resize the images of the data to the size that their weights record.
    """
    from tutelage.report.console import stderr_console
    from tutelage.runs.models import RECORDED, check_normalisation_used, open_trained
    from tutelage.runs.teachers import describe_normalisation
    from tutelage.trust import typed_specs

    fields: dict[str, Any] = {name: text for name, text in (("mean", mean), ("std", std)) if text is not None}
    mean_std = Normalization(**fields).pair
    networks = [
        open_trained(name, data, mean_std, trust or typed_specs(*names), "recorded" if number else None)
        for number, name in enumerate(names)
    ]
    if mean_std is not None:
        check_normalisation_used("--mean and --std", networks)
    for name, network in zip(names, networks, strict=True):
        if network.normalisation != RECORDED:
            stderr_console().print(describe_normalisation(name, network), markup=False, highlight=False)
    return networks
