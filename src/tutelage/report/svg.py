"""Figures for the report page: SVG with the colours and fonts of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholder colours that are replaced by colours of the page's style sheet.
INK, QUIET, RULE, ACCENT, SECOND, PAPER = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
_COLOURS = {
    INK: "currentColor",
    QUIET: "var(--quiet)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    PAPER: "var(--paper)",
}
_PANEL = "panel-"
_DECIMALS = re.compile(r"-?\d+\.\d{2,}")
_FONT = re.compile(r"font(-family)?: [^;]*;")
_INVISIBLE_TAGS = {"metadata", "style"}

Draw = Callable[["Axes"], object]
Marks = Sequence["Artist"]


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings while figures of the page are made and written."""
    import matplotlib as mpl

    settings: Any = {  # its type lists all names in some versions of matplotlib
        "svg.fonttype": "none",
        "svg.hashsalt": "tutelage",
        "path.simplify_threshold": 0.3,
        "text.parse_math": False,
        "font.size": 10,
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": QUIET,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.unicode_minus": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "axes.labelsize": "medium",
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.solid_capstyle": "butt",
        "figure.facecolor": "none",
    }
    with mpl.rc_context(settings):
        yield


class Sheet:
    """The figures of one page. Elements that several figures share, frames and markers, are defined once.

    A definition is named by its content or a counter, so names are unique.
    """

    def __init__(self) -> None:
        self._definitions: dict[str, str] = {}
        self._frames = 0

    def definitions(self) -> str:
        """The shared definitions, as an element without size that must be on the page."""
        inner = "".join(self._definitions.values())
        return f'<svg class="definitions" width="0" height="0" aria-hidden="true"><defs>{inner}</defs></svg>'

    def drawing(self, figure: Figure, label: str) -> str:
        """A figure, with its size in points, as an ``svg`` element with an accessible label."""
        root, _ = self._written(figure)
        return self._element(figure, label, "".join(self._plain(child) for child in root))

    def panels(self, figure: Figure, frame: Draw, marks: Sequence[Marks], labels: Sequence[str]) -> list[str]:
        """A figure for each of ``marks``, all on the figure's only axes, which ``frame`` prepares.

        The frame sets limits, ticks and labels of the axes. It is drawn and defined once, so hundreds of panels are
        fast to write and small. Marks are not clipped to the frame.
        """
        (axes,) = figure.axes
        frame(axes)
        for number, artists in enumerate(marks):
            for artist in artists:
                artist.set_gid(f"{_PANEL}{number}")
                axes.add_artist(artist)
        _, axes_element = self._written(figure)
        groups: dict[str, list[str]] = {}
        common: list[str] = []
        for child in axes_element:
            name = child.get("id", "")
            elements = groups.setdefault(name, []) if name.startswith(_PANEL) else common
            elements.append(self._plain(child))
        self._frames += 1
        key = f"frame-{self._frames}"
        self._definitions[key] = f'<g id="{key}">{"".join(common)}</g>'
        use = f'<use href="#{key}"/>'
        return [
            self._element(figure, label, use + "".join(groups.get(f"{_PANEL}{number}", [])))
            for number, label in enumerate(labels)
        ]

    def _written(self, figure: Figure) -> tuple[ElementTree.Element, ElementTree.Element]:
        """The figure as a tree: its root, and the element of the first axes."""
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        root = ElementTree.fromstring(file.getvalue())
        axes = next((part for part in root.iter() if part.get("id") == "axes_1"), root)
        return root, axes

    def _element(self, figure: Figure, label: str, inner: str) -> str:
        width, height = (round(72 * float(side)) for side in figure.get_size_inches())
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
            f'style="--width:{width}">{inner}</svg>'
        )

    def _plain(self, element: ElementTree.Element) -> str:
        """An element as text without namespaces, names and machine precision; definitions go to the sheet."""
        tag = element.tag.rpartition("}")[2]
        if tag in _INVISIBLE_TAGS:
            return ""
        if tag == "defs":
            for child in element:
                name = child.get("id")
                if name:
                    self._definitions[name] = self._tag(child, keep=name)
            return ""
        if tag == "path" and element.get("style", "").replace(" ", "") in ("fill:none", "fill:none;opacity:0"):
            return ""  # the invisible background
        return self._tag(element)

    def _tag(self, element: ElementTree.Element, keep: str = "") -> str:
        tag = element.tag.rpartition("}")[2]
        inner = escape((element.text or "").strip(), quote=False) + "".join(self._plain(child) for child in element)
        if tag == "g" and not inner:
            return ""
        attributes = {"id": keep} if keep else {}
        for name, value in element.attrib.items():
            short = name.rpartition("}")[2]
            if short == "transform" and "rotate(-0 " in value:
                continue
            if short not in ("id", "clip-path"):
                attributes[short] = _short(short, value)
        if tag == "g" and not attributes:
            return inner
        attribute_text = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        return f"<{tag}{attribute_text}>{inner}</{tag}>" if inner else f"<{tag}{attribute_text}/>"


def _short(name: str, value: str) -> str:
    if name == "style":
        for placeholder, colour in _COLOURS.items():
            value = value.replace(placeholder, colour)
        return _FONT.sub("", value).replace(": ", ":").replace("; ", ";")
    value = " ".join(value.split())
    return _DECIMALS.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), value)
