"""Opening the data set that a run was trained on."""

from __future__ import annotations

from tutelage.config import OBJECT_PREFIX, Config, read_config
from tutelage.data import Data, open_data
from tutelage.errors import TutelageError
from tutelage.runs.folder import CONFIG
from tutelage.runs.locate import locate, run_folder


def open_run_data(
    run: str, spec: str | None = None, image_size: int | None = None, test: float | None = None, skip_bad: bool = False
) -> Data:
    """Open the data set ``spec``, or by default the data set that the run was trained on.

    Images are cut as in the run's evaluation.

    Raises:
        TutelageError: there is no such data set, no trained network ``run``, or the run records no data set.
    """
    locate(run)  # checked first: a misspelt path of the run is the most common mistake
    folder = run_folder(run)
    fields = read_config(folder / CONFIG) if folder is not None else {}
    names = ("data", "image_size", "test", "skip_bad", "augment")
    config = Config(**{name: fields[name] for name in names if name in fields})
    if spec is None:
        if "data" not in fields or config.data.startswith(OBJECT_PREFIX):
            raise TutelageError(f"{run} does not record a data set that can be opened by name; name one with --data")
        spec, skip_bad = config.data, skip_bad or config.skip_bad
        image_size = config.image_size if image_size is None else image_size
        test = config.test if test is None else test
    return open_data(spec, image_size=image_size, test=test, skip_bad=skip_bad, whole=config.reads_whole_images)
