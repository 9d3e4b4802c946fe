"""Running a study, and the files that a run has written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tutelage.studies.jobs import Status
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import InlineWorkers

Refused = Callable[..., AbstractContextManager[None]]
Tiny = Callable[..., Study]

BROKEN = """
from torch import nn
from tutelage.models.networks.resnet import ResNet

class Broken(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = ResNet(8, num_classes, in_channels, width=0.25)

    def forward(self, x):
        if self.training:
            {}
        return self.body(x)
"""


def run(study: Study, out: Path, watch: Callable[[Status], None] | None = None) -> Results:
    return run_study(study, out, workers=InlineWorkers(), watch=watch)
