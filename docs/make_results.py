"""Write the pages of docs/results from the raw files beside them.

``demo.md`` is from what ``tutelage demo`` wrote, ``nine-methods.md`` and its picture from what
``experiments/nine_methods.py`` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import stdev
from typing import Any

from tutelage.report.plots import plot_gain_grid
from tutelage.studies.compare import PLAIN, TEACHER, Row, tabulate
from tutelage.studies.statistics import holm, paired_p_value

FOLDER = Path(__file__).resolve().parent / "results"

# --- the demo

DEMO_HEAD = """\
# The demo

`tutelage demo`: real handwritten digits (1,797 of them, 8 x 8, from scikit-learn), 40 % of the training labels wrong,
no augmentation. `resnet8x0.5` students (channels 8-16-32) under a `resnet14x0.5` teacher that was trained on the same
labels; 20 epochs, three paired seeds, last epoch, CPU, torch 2.13.
FitNets' and FSP's two stages share the 20 epochs; DML trains two nets, so it costs twice as much, and ONE three last
stages. Test labels are clean. Mean ± half of the 95 % t interval over seeds; the gain is the mean of paired
differences, in points.

A gain whose interval holds 0 is not shown to exist; with three seeds t is 4.3. With crops by one pixel hardly any wrong
label is learnt by heart and little is left to gain: that, with five seeds, and other data are in
[nine-methods.md](nine-methods.md)."""


def demo_page() -> str:
    """The page of the demo."""
    result = json.loads((FOLDER / "demo.json").read_text(encoding="utf-8"))
    said = verdict([row for row in result["rows"] if row["gain"] is not None])
    return "\n\n".join([DEMO_HEAD, table(result["rows"]), said, "Raw: [demo.json](demo.json)\n"])


# --- the nine methods

NINE_HEAD = """\
# The nine methods of the study

Each method beside the plain student, with its defaults, paired by seed, on correct labels and with 40 % symmetric
noise (each label hit becomes one of the other classes). The teacher was trained on the same labels, noisy ones
included; test labels are clean; the last epoch counts. Students of one seed share first weights, batches, noise and
teacher. Mean ± standard deviation over seeds; the difference to the plain student is the mean of paired differences, in
points, ± half of its 95 % t interval.

Everything here is **CPU-scale**: small networks, few epochs. Nothing of it is the study's own protocol (200 epochs,
WRN-40-2 teaching WRN-16-2 on all of CIFAR-10), which takes a GPU and has not been run. FitNets' and FSP's two stages
share the epochs of the others. DML trains two nets; BSS, with up to ten steps of its attack a batch, took three to
eight times as long as the plain student. `training_seconds` in the raw files were taken on a busy machine.

![gains](nine-methods.png)

Made again by `python -m experiments.nine_methods digits`, `... fashion --source idx:FOLDER` and
`... cifar10 --source npz:FILE`, then `python docs/make_results.py`. A part of it: `--methods sp rkd --seeds 2`.
"""

DATA = {
    "digits": "Digits: 1,437 training images of 8 x 8; `resnet14x0.5` teaches `resnet8x0.5`, 20 epochs, crops",
    "fashion": (
        "Fashion-MNIST: 10,000 training images of 28 x 28, 1,000 a class; ResNet-14 teaches ResNet-8, "
        "channels 8-16-32, first convolution at stride 4, 8 epochs, no crops or flips"
    ),
    "cifar10": (
        "CIFAR-10: 10,000 training images of 32 x 32, 1,000 a class; ResNet-14 teaches ResNet-8, "
        "channels 8-16-32, first convolution at stride 4, 8 epochs, no crops or flips"
    ),
}
NOISE = {"0": "correct labels", "0.4": "40 % of the labels wrong"}


def nine_rows(data: str, noise: str) -> list[Row]:
    """What was measured on a data set under a noise, from the raw files; empty where there are none."""
    runs: dict[tuple[str, int], Mapping[str, Any]] = {}
    for file in sorted((FOLDER / "nine-methods" / f"{data}-noise-{noise}").glob("*.json")):
        raw = json.loads(file.read_text(encoding="utf-8"))
        runs[raw["row"], raw["seed"]] = raw
    names = list(dict.fromkeys(name for name, _ in runs))
    seeds = sorted({seed for _, seed in runs})
    order = [TEACHER, PLAIN, *(name for name in ORDER if name in names)]
    return tabulate(runs, order + [name for name in names if name not in order], seeds) if runs else []


ORDER = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


def nine_page() -> str:
    """The page of the nine methods."""
    parts = [NINE_HEAD]
    for data, about in DATA.items():
        parts.append(f"## {about}\n")
        for noise, labels in NOISE.items():
            rows = [asdict(row) for row in nine_rows(data, noise)]
            if not rows:
                parts.append(f"### {data}, {labels}\n\nNot run yet.\n")
                continue
            said = f"{verdict([row for row in rows if row['gain'] is not None])} {corrected(rows)}"
            folder = f"nine-methods/{data}-noise-{noise}"
            raw = f"Raw: [{folder}]({folder}), a file a run\n"
            seeds = len(rows[0]["values"])
            parts += [f"### {data}, {labels}, {seeds} seeds\n", f"{said}\n", table(rows, spread=True), "", raw]
    return "\n".join(parts)


def nine_picture() -> None:
    """Gains over the plain student, a panel for each data set and noise."""
    panels = {
        f"{data}, {labels}": [row for row in nine_rows(data, noise) if row.method in ORDER]
        for data in DATA
        for noise, labels in NOISE.items()
        if nine_rows(data, noise)
    }
    plot_gain_grid(panels, FOLDER / "nine-methods.png")


# --- both

TOLERATED = 0.005  # what a default may cost in accuracy; see docs/methods/weights.md


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals allow to say of the gains."""
    above = [row["method"] for row in rows if row["gain"]["low"] > 0]
    below = [row["method"] for row in rows if row["gain"]["high"] < 0]
    said = [
        f"{'Clearly above' if names is above else 'Clearly below'} the plain student: {'; '.join(names)}."
        for names in (above, below)
        if names
    ]
    rest = len(rows) - len(above) - len(below)
    if rest:
        said.append(f"For {'the other ' if said else 'all '}{rest} the interval holds 0.")
    worse = [row["method"] for row in rows if row["gain"]["mean"] < -TOLERATED and row["method"] in ORDER]
    if worse:
        said.append(f"More than half a point below in the mean: {'; '.join(worse)}.")
    return " ".join(said)


def corrected(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which of the nine still differ from the plain student when it is said that nine were compared."""
    values = {row["method"]: row["values"] for row in rows}
    compared = [name for name in ORDER if name in values]
    adjusted = holm([paired_p_value(values[name], values[PLAIN]) for name in compared])
    left = [name for name, p in zip(compared, adjusted, strict=True) if p < 0.05]
    return f"After Holm's correction for {len(compared)} comparisons: {'; '.join(left) if left else 'none differs'}."


def table(rows: Sequence[Mapping[str, Any]], *, spread: bool = False) -> str:
    """Rows as a table; with ``spread`` the accuracy has its standard deviation over seeds and not its interval."""
    lines = [
        "| | test accuracy, % | difference to plain | memorised, % | ECE |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        accuracy = (
            f"{100 * row['accuracy']['mean']:.2f} ± {100 * stdev(row['values']):.2f}"
            if spread
            else _cell(row["accuracy"])
        )
        cells = (accuracy, _cell(row["gain"], "+.2f"), _cell(row["memorised"]), _cell(row["ece"], ".3f", 1))
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(interval: Mapping[str, float] | None, form: str = ".2f", scale: float = 100) -> str:
    if interval is None:
        return ""
    half = scale * (interval["high"] - interval["mean"])
    return f"{scale * interval['mean']:{form}} ± {half:{form.lstrip('+')}}"


if __name__ == "__main__":
    (FOLDER / "demo.md").write_text(demo_page(), encoding="utf-8")
    (FOLDER / "nine-methods.md").write_text(nine_page(), encoding="utf-8")
    nine_picture()
