"""Opening the trained networks, and the data, of the commands ``evaluate`` and ``export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.config import OBJECT_PREFIX, Config, Normalization, read_config
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from tutelage.data import Data
    from tutelage.runs.models import TrainedModel


def open_run_data(
    run: str, spec: str | None, image_size: int | None, test: float | None = None, skip_bad: bool = False
) -> Data:
    """Open the data set ``spec``, or by default the data set that the run was trained on.

    Raises:
        TutelageError: there is no such data set, no trained network ``run``, or the run records no data set.
    """
    from tutelage.data import open_data
    from tutelage.runs.folder import CONFIG
    from tutelage.runs.locate import locate, run_folder

    locate(run)  # checked first: a misspelt path of the run is the most common mistake
    if spec is None:
        folder = run_folder(run)
        fields = read_config(folder / CONFIG) if folder is not None else {}
        config = Config(**{name: fields[name] for name in ("data", "image_size", "test", "skip_bad") if name in fields})
        if "data" not in fields or config.data.startswith(OBJECT_PREFIX):
            raise TutelageError(f"{run} does not record a data set that can be opened by name; name one with --data")
        spec, skip_bad = config.data, skip_bad or config.skip_bad
        image_size = config.image_size if image_size is None else image_size
        test = config.test if test is None else test
    return open_data(spec, image_size=image_size, test=test, skip_bad=skip_bad)


def open_networks(names: list[str], data: Data, mean: str | None, std: str | None, trust: bool) -> list[TrainedModel]:
    """Open trained networks, and print where their normalization comes from if their weights do not record it.

    ``mean`` and ``std`` apply to the networks whose weights record none.
    """
    from tutelage.report.console import stderr_console
    from tutelage.runs.models import RECORDED, check_normalisation_used, open_trained
    from tutelage.runs.teachers import describe_normalisation
    from tutelage.trust import typed_specs

    fields: dict[str, Any] = {name: text for name, text in (("mean", mean), ("std", std)) if text is not None}
    mean_std = Normalization(**fields).pair
    networks = [open_trained(name, data, mean_std, trust or typed_specs(*names)) for name in names]
    if mean_std is not None:
        check_normalisation_used("--mean and --std", networks)
    for name, network in zip(names, networks, strict=True):
        if network.normalisation != RECORDED:
            stderr_console().print(describe_normalisation(name, network), markup=False, highlight=False)
    return networks
