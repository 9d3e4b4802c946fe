"""Write docs/results/demo.md from the raw files beside it, which `tutelage demo` made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"

HEAD = """\
# The demo

Real handwritten digits (1,797 of them, 8 x 8, from scikit-learn), `resnet8x0.5` students (channels 8-16-32) under a
`resnet14x0.5` teacher that was trained on the same labels; 20 epochs, three paired seeds, last epoch, CPU, torch 2.13.
FitNets' two stages share the 20 epochs; DML trains two nets, so it costs twice as much. Test labels are clean.
Mean ± half of the 95 % t interval over seeds; the gain is the mean of paired differences, in points.

A gain whose interval holds 0 is not shown to exist. With three seeds t is 4.3, so most of them are not.
"""

STORIES = {
    "noise-0.4-plain-views": (
        "tutelage demo",
        "40 % of the training labels wrong, no augmentation: the plain student learns more than half of the wrong\n"
        "labels by heart. Every method memorises fewer; of the gains in accuracy only attention transfer's is clear\n"
        "of 0 (not corrected for comparing four methods).",
    ),
    "noise-0.4-augmented": (
        "tutelage demo --augment",
        "The same with crops by one pixel. Hardly any wrong label is memorised any more, and little is left to gain.",
    ),
    "noise-0-augmented": (
        "tutelage demo --augment --noise 0",
        "Correct labels, with crops. No gain is clear of 0, and no loss.",
    ),
}


def table(result: dict[str, Any]) -> str:
    """One comparison as a table."""
    lines = ["| | test accuracy, % | gain over plain | memorised, % | ECE |", "| --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        cells = (
            _cell(row["accuracy"]),
            _cell(row["gain"], "+.2f"),
            _cell(row["memorised"]),
            _cell(row["ece"], ".3f", 1),
        )
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(interval: dict[str, float] | None, form: str = ".2f", scale: float = 100) -> str:
    if interval is None:
        return ""
    half = scale * (interval["high"] - interval["mean"])
    return f"{scale * interval['mean']:{form}} ± {half:{form.lstrip('+')}}"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (command, story) in STORIES.items():
        result = json.loads((FOLDER / "demo" / f"{name}.json").read_text(encoding="utf-8"))
        parts.append(f"## `{command}`\n\n{story}\n\n{table(result)}\n\nRaw: [demo/{name}.json](demo/{name}.json)\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (FOLDER / "demo.md").write_text(page(), encoding="utf-8")
