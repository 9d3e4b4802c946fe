"""Whether a network's outputs can be evaluated on a data set."""

from __future__ import annotations

import torch

from tutelage.data.data import Data
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NETWORK_ERRORS, TutelageError, one_line
from tutelage.models.modes import eval_mode
from tutelage.models.state import dtype_hint
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Task


def incompatibility(task: Task, model: Tapped, data: Data) -> str | None:
    """Why a network's outputs cannot be evaluated on the data, from a pass over two training samples; or ``None``.

    For example a backbone without a classifier, a network for other classes, or one for another input size. Such a
    network may still be a teacher of features.
    """
    samples = data.train.subset(torch.arange(min(2, len(data.train))))
    name = type(model.module).__name__
    try:
        batch = next(evaluation_batches(samples, device=model.mean.device, workers=0))
        with eval_mode(model), torch.no_grad():
            task.check(name, task.with_evaluated_roles(model, data).tap(batch.inputs, task.roles), data)
    except TutelageError as error:
        return str(error)
    except NETWORK_ERRORS as error:
        remedy = dtype_hint(model) or f"; give it one for such {data.modality.noun}"
        return f"{name} cannot take {data.modality.noun} of shape {data.input_shape}: {one_line(error)}{remedy}"
    return None
