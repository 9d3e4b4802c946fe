"""Teachers: frozen networks, a moving average of the student, the students of a cohort, the student itself."""

from tutelage.sources.cache import TeacherCache
from tutelage.sources.ema import EMA
from tutelage.sources.frozen import Frozen
from tutelage.sources.own_outputs import OwnOutputs
from tutelage.sources.peers import Peers
from tutelage.sources.second_view import SecondView
from tutelage.sources.source import Cohort, Source

__all__ = ["EMA", "Cohort", "Frozen", "OwnOutputs", "Peers", "SecondView", "Source", "TeacherCache"]
