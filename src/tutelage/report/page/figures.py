"""Sections of pictures."""

from __future__ import annotations

from html import escape

from tutelage.report.figures.frame import Block, Panel, Section

_FEW = 30
"""So many panels of a section are shown at once; of more, those of the first condition."""


def panels_of(section: Section) -> str:
    """The panels of a section, a condition and pair a block."""
    panels = sum(len(block.panels) for block in section.blocks)
    blocks = "".join(
        _block(block, section, opened=number == 0 or panels <= _FEW) for number, block in enumerate(section.blocks)
    )
    return f'<p class="note">{escape(section.note)}</p>{blocks}'


def _block(block: Block, section: Section, *, opened: bool) -> str:
    inner = "".join(_panel(panel) for panel in block.panels)
    large = " large" if section.width > 300 else ""
    grid = f'<div class="panels{large}" style="--least:{section.width}px">{inner}</div>'
    if not block.title:
        return grid
    return f'<details class="block"{" open" if opened else ""}><summary>{escape(block.title)}</summary>{grid}</details>'


def _panel(panel: Panel) -> str:
    note = f' <span class="quiet">{escape(panel.note)}</span>' if panel.note and panel.svg else ""
    title = f"<figcaption><b>{escape(panel.title)}</b>{note}</figcaption>" if panel.title or note else ""
    missing = "" if panel.note == "not measured" else "missing: "
    inner = panel.svg or f'<p class="empty">{missing}{escape(panel.note)}</p>'
    return f"<figure>{title}{inner}</figure>"
