"""Who teaches: a frozen network, an average of the student over time, the other students of a cohort."""

from tutelage.sources.ema import EMA
from tutelage.sources.frozen import Frozen
from tutelage.sources.peers import Peers
from tutelage.sources.source import Cohort, Source

__all__ = ["EMA", "Cohort", "Frozen", "Peers", "Source"]
