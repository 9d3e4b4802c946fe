"""A whole run: data, models and method from one configuration, in one folder."""

from tutelage.runs.execute import Result, execute
from tutelage.runs.folder import RunFolder
from tutelage.runs.models import open_model, open_trained

__all__ = ["Result", "RunFolder", "execute", "open_model", "open_trained"]
