"""Write the pages of docs/results from the raw results beside them.

``demo.md`` shows ``tutelage demo``; ``nine-methods.md`` and its figure show ``experiments/nine_methods.py``; the raw
results of both are written by ``experiments/raw.py``. Each other page shows an ``EXPERIMENT`` (see
``experiments/paired.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tutelage.report.conclusions import conclusion
from tutelage.report.markdown import Column, markdown_table
from tutelage.studies import PLAIN
from tutelage.studies.functions import read_lines
from tutelage.studies.metrics import metrics_of
from tutelage.studies.results import Results, Row
from tutelage.tasks import find_task

FOLDER = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(FOLDER.parent.parent))

from experiments import paired  # noqa: E402 - it lies beside the package, not in it

# --- the demo

DEMO_HEAD = """\
# The demo

`tutelage demo`: real handwritten digits (1,797 of them, 8 x 8, from scikit-learn), 40 % of the training labels wrong,
no augmentation. `resnet8x0.5` students (channels 8-16-32) under a `resnet14x0.5` teacher that was trained on the same
labels; 20 epochs, three paired seeds, last epoch, float32 on a CPU, torch 2.13.
The two stages of FitNets and FSP share the 20 epochs; DML trains two networks, so it costs twice as much, and ONE
trains three copies of the last stage. Test labels are clean. Mean ± half the width of the 95 % t interval over seeds;
the difference is the mean of paired differences, in percentage points.

A difference whose interval includes 0 is not significant; with three seeds t is 4.3. With crops by one pixel hardly any
wrong label is memorised, so there is little to gain: [nine-methods.md](nine-methods.md) has results with crops, five
seeds and other data."""


def demo_page() -> str:
    """The page of the demo."""
    results = measured(FOLDER / "demo.jsonl", "digits", "0.4")
    parts = [DEMO_HEAD, table(results), conclusion(results.table())]
    return "\n\n".join([*parts, "Raw results: [demo.jsonl](demo.jsonl), one line a run\n"])


# --- the nine methods

NINE_HEAD = """\
# The nine methods of the study

Each method is compared with the plain student, with its default settings, paired by seed, on correct labels and with
40 % symmetric noise (each wrong label is one of the other classes). The teacher was trained on the same labels,
including the noisy ones; test labels are clean; results are of the last epoch. Students of one seed share initial
weights, batches, noise and teacher. Mean ± standard deviation over seeds; the difference to the plain student is the
mean of paired differences, in percentage points, ± half the width of its 95 % t interval.

Everything here is **CPU-scale**: small networks, few epochs. The study's own protocol (200 epochs, teacher WRN-40-2 and
student WRN-16-2 on all of CIFAR-10) takes a GPU and has not been run. The two stages of FitNets and FSP share the
epochs of the others. DML trains two networks; BSS, with up to ten steps of its attack a batch, took three to
fourteen times as long as the plain student. `training_seconds` in the raw files were taken on a busy machine.

![gains](nine-methods.png)

Reproduce with `python -m experiments.nine_methods digits`, `... fashion --source idx:FOLDER` and
`... cifar10 --source npz:FILE`, then `python docs/make_results.py`. To run a part: `--methods sp rkd --seeds 2`.
"""

DATA = {
    "digits": "Digits: 1,437 training images of 8 x 8; `resnet14x0.5` teaches `resnet8x0.5`, 20 epochs, crops",
    "fashion": (
        "Fashion-MNIST: 10,000 training images of 28 x 28, 1,000 a class; ResNet-8 with channels 32-64-128 teaches one "
        "with 8-16-32, first convolutions at stride 4, 8 epochs, no crops or flips"
    ),
    "cifar10": (
        "CIFAR-10: 10,000 training images of 32 x 32, 1,000 a class; ResNet-8 with channels 32-64-128 teaches one "
        "with 8-16-32, first convolutions at stride 4, 8 epochs, no crops or flips"
    ),
}
NOISE = {"0": "correct labels", "0.4": "40 % of the labels wrong"}


def nine(data: str, noise: str) -> Results | None:
    """What was measured on a data set under a noise; ``None`` where nothing was."""
    return measured(FOLDER / "nine-methods" / f"{data}-noise-{noise}.jsonl", data, noise)


ORDER = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


def nine_page() -> str:
    """The page of the nine methods."""
    parts = [NINE_HEAD]
    for data, about in DATA.items():
        parts.append(f"## {about}\n")
        for noise, labels in NOISE.items():
            results = nine(data, noise)
            if results is None:
                parts.append(f"### {data}, {labels}\n\nNot run yet.\n")
                continue
            text = " ".join([conclusion(results.table()), *falling_short(results)])
            file = f"nine-methods/{data}-noise-{noise}.jsonl"
            source = f"Raw results: [{file}]({file}), one line a run\n"
            seeds = len(results.study["seeds"])
            parts += [f"### {data}, {labels}, {seeds} seeds\n", f"{text}\n", table(results, spread=True), "", source]
    return "\n".join(parts)


def nine_picture() -> None:
    """Gains over the plain student, a panel for each data set and noise."""
    panels = {
        f"{data}, {labels}": [row for row in results.table() if row.cell.method in ORDER]
        for data in DATA
        for noise, labels in NOISE.items()
        if (results := nine(data, noise))
    }
    draw_gains(panels, FOLDER / "nine-methods.png")


_ACCENT, _QUIET = "#1f6f8b", "#8a8f98"


def draw_gains(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Gain over the plain student with its interval, a line a method, a panel a comparison, two side by side: a PNG."""
    shown = {title: [row for row in rows if row.gain is not None] for title, rows in panels.items()}
    shown = {title: rows for title, rows in shown.items() if rows}
    most = max(len(rows) for rows in shown.values())
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        down = (len(shown) + 1) // 2
        figure = Figure(figsize=(10, down * (1.1 + 0.3 * most)), layout="constrained")
        axes = figure.subplots(down, 2, squeeze=False).flatten()
        for axis, (title, rows) in zip(axes, shown.items(), strict=False):
            for place, row in enumerate(rows):
                _draw_gain(axis, place, row)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(rows)), [row.cell.method for row in rows])
            axis.invert_yaxis()
            axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlabel("gain over the plain student, points (95 % interval)")
        for axis in axes[len(shown) :]:
            axis.remove()
        figure.savefig(path, dpi=150)


def _draw_gain(axis: Axes, place: int, row: Row) -> None:
    """A dot with its interval; quiet where the interval holds 0."""
    gain = row.gain
    if gain is None:
        return
    colour = _ACCENT if gain.low > 0 or gain.high < 0 else _QUIET
    axis.plot([100 * gain.low, 100 * gain.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axis.plot(100 * gain.mean, place, "o", color=colour, markersize=7)


# --- both


def measured(file: Path, data: str, noise: str) -> Results | None:
    """A study of one condition, from its raw results; ``None`` where there are none."""
    lines = read_lines(file)
    if not lines:
        return None
    condition = {"data": data, "noise": noise, "imbalance": None, "per_class": None, "teacher_labels": "noisy"}
    names = sorted({line["row"] for line in lines}, key=lambda name: (_place(name), name))
    runs = [
        dict.fromkeys(metrics_of(find_task("classification")))
        | line["test"]
        | {"memorised": line["train"]["memorised"], "seed": line["seed"], "method": line["row"]}
        | {**condition, "teacher": "", "student": "", "status": "done", "error": None}
        for line in sorted(lines, key=lambda line: names.index(line["row"]))
    ]
    return Results(file.parent, {"seeds": sorted({line["seed"] for line in lines})}, tuple(runs))


def _place(name: str) -> int:
    known = ("teacher", PLAIN, *ORDER)
    return known.index(name) if name in known else len(known)


TOLERATED = 0.005  # what a default may cost in accuracy; see docs/methods/weights.md


def below(results: Results) -> list[str]:
    """Which of the nine are more than that below the plain student in the mean."""
    gains = {row.cell.method: row.gain for row in results.table() if row.gain and row.cell.method in ORDER}
    return [name for name, gain in gains.items() if gain.mean < -TOLERATED]


def falling_short(results: Results) -> list[str]:
    """That in a sentence, if there is any."""
    names = below(results)
    return [f"Mean more than half a percentage point below the plain student: {'; '.join(names)}."] if names else []


COLUMNS = {
    "accuracy": Column("test accuracy, %", digits=2),
    "memorised": Column("memorised, %", digits=2),
    "ece": Column("ECE", share=False, digits=3),
}


def table(results: Results, *, spread: bool = False) -> str:
    """A line a row; with ``spread`` the accuracy is followed by its standard deviation over seeds, not its interval."""
    accuracy, *others = COLUMNS.values()
    lines = []
    for row, *other_rows in zip(*map(results.table, COLUMNS), strict=True):
        mean = accuracy.mean_and_half(row.mean)
        if spread and row.mean is not None and row.deviation is not None:
            mean = f"{accuracy.number(row.mean.mean)} ± {accuracy.number(row.deviation)}"
        cells = [column.mean_and_half(other.mean) for column, other in zip(others, other_rows, strict=True)]
        lines.append([row.cell.method, mean, accuracy.mean_and_half(row.gain, "+"), *cells])
    return markdown_table(["", accuracy.title, "difference to plain", *(column.title for column in others)], lines)


if __name__ == "__main__":
    (FOLDER / "demo.md").write_text(demo_page(), encoding="utf-8")
    (FOLDER / "nine-methods.md").write_text(nine_page(), encoding="utf-8")
    nine_picture()
    for experiment in paired.installed():
        if not experiment.file.exists():  # nothing has been run yet
            continue
        (FOLDER / f"{experiment.name}.md").write_text(paired.page(experiment), encoding="utf-8")
