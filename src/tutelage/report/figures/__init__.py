"""Figures of the page of a study.

Most are small multiples: one panel per method, with the method in colour and the plain student as a dashed line.
Methods are therefore not distinguished by colour, and forty methods are as legible as four. The panels of a section
share their scales.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.report.figures.calibration import reliability
from tutelage.report.figures.classes import per_class
from tutelage.report.figures.cost import cost
from tutelage.report.figures.curves import attacks, corruptions, pgd, risk_coverage, training
from tutelage.report.figures.frame import Section
from tutelage.report.figures.gains import gains, ranks
from tutelage.report.figures.levels import along
from tutelage.report.svg import Sheet, style
from tutelage.studies.results import Results, Row


def sections(results: Results, rows: Sequence[Row], metric: str, sheet: Sheet) -> list[Section]:
    """Draw all sections for which the results have values, in the order of the page."""
    with style():
        candidates = [
            gains(results, rows, sheet),
            ranks(results, metric, sheet),
            along(results, rows, sheet, "noise"),
            along(results, rows, sheet, "imbalance"),
            per_class(results, sheet),
            reliability(results, sheet),
            risk_coverage(results, sheet),
            corruptions(results, sheet),
            pgd(results, sheet),
            attacks(results, sheet),
            cost(results, rows, sheet),
            training(results, sheet),
        ]
    return [section for section in candidates if section is not None]
