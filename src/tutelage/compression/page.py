"""The compressed networks as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.compression.variants import DENSE, Compression, Variant
from tutelage.report.figures.frame import blank_figure, limits_of, name_axes, stroke
from tutelage.report.figures.point_labels import label_points
from tutelage.report.image import POLICY
from tutelage.report.page import style_sheet, templates
from tutelage.report.svg import ACCENT, INK, PAPER, QUIET, SECOND, Sheet, style
from tutelage.text import printable, printable_values

COSTS = {"latency": "latency of one input, ms", "size": "size of the file, kB", "flops": "FLOPs of one input, millions"}
_UNITS = {"latency": 1.0, "size": 1e3, "flops": 1e6}


def page(compression: Compression) -> str:
    """Render the page."""
    sheet = Sheet()
    with style():
        figures = [(title, scatter(compression, cost, title, sheet)) for cost, title in COSTS.items()]
    knee = compression.knee()
    return (
        templates(__package__)
        .get_template("compression.html")
        .render(
            policy=POLICY,
            style=style_sheet(),
            definitions=sheet.definitions(),
            network=printable(compression.network),
            data=printable(compression.data),
            samples=compression.samples,
            metric=compression.metric,
            targets=", ".join(compression.targets),
            dense=_row(compression, compression.dense),
            knee=_row(compression, knee),
            is_dense=knee is compression.dense,
            rows=[_row(compression, variant) for variant in compression.variants],
            packed=any(variant.packed is not None for variant in compression.variants),
            figures=figures,
            failed=printable_values(dict(compression.failed)),
        )
    )


def _row(compression: Compression, variant: Variant) -> dict[str, Any]:
    """The texts of a variant: its costs with their ratios to those of the network itself."""
    dense = compression.dense
    return {
        "name": printable(variant.name),
        "file": printable(variant.file),
        "score": compression.metric.text(variant.score) if variant.score == variant.score else "none",
        "latency": f"{variant.latency:.3g} ms",
        "latency_share": f"{variant.latency / dense.latency:.2f}",
        "size": size_text(variant.size),
        "size_share": f"{variant.size / dense.size:.2f}",
        "flops_share": f"{variant.flops / max(dense.flops, 1):.2f}",
        "parameters_share": f"{variant.parameters / max(dense.parameters, 1):.2f}",
        "packed": "" if variant.packed is None else size_text(variant.packed),
        "on_front": any(variant is other for other in compression.front()),
        "is_knee": variant is compression.knee(),
    }


def size_text(count: int) -> str:
    """A number of bytes in kB or MB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def scatter(compression: Compression, cost: str, title: str, sheet: Sheet) -> str:
    """The main metric against one cost on a logarithmic axis, with the front as a line and the knee as a ring."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    variants = [variant for variant in compression.variants if variant.score == variant.score]
    if not variants:
        return ""
    scale = 100.0 if compression.metric.percent else 1.0
    xs = np.array([getattr(variant, cost) / _UNITS[cost] for variant in variants], dtype=float)
    ys = scale * np.array([variant.score for variant in variants])
    figure = blank_figure(520, 300, left=42, top=24, bottom=36)
    (axes,) = figure.axes
    axes.set_xscale("log")
    axes.set_xlim(xs.min() / 1.25, xs.max() * 1.6)
    axes.set_ylim(*limits_of([ys]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    name_axes(axes, title, compression.metric.short_title + (", %" if scale == 100 else ""))
    places = {id(variant): (x, y) for variant, x, y in zip(variants, xs, ys, strict=True)}
    line = [places[id(variant)] for variant in compression.front(cost)]
    axes.add_artist(stroke([x for x, _ in line], [y for _, y in line], QUIET, linewidth=1.2))
    edge = {"markeredgecolor": PAPER, "markeredgewidth": 0.8}
    for variant, (x, y) in zip(variants, places.values(), strict=True):
        is_int8 = variant.name.endswith(" INT8")
        colour = SECOND if variant.name.startswith(DENSE) else ACCENT
        axes.add_artist(stroke([x], [y], colour, marker="s" if is_int8 else "o", markersize=6.5, **edge))
    x, y = places[id(compression.knee(cost))]
    ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
    axes.add_artist(stroke([x], [y], INK, marker="o", markersize=13, **ring))
    marked = [*compression.front(cost), compression.dense]
    labelled = [number for number, variant in enumerate(variants) if any(variant is other for other in marked)]
    label_points(axes, [variant.name for variant in variants], xs, ys, labelled, length=32)
    return sheet.drawing(figure, f"{compression.metric.short_title} against {title}")
