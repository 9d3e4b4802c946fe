"""Write the pages of docs/results from the raw results beside them.

``demo.md`` shows ``tutelage demo``; ``nine-methods.md`` and its figure show ``experiments/nine_methods.py``; the raw
results of both are written by ``experiments/raw.py``. ``cifar10.md`` and ``cifar10*.png`` show
``experiments/cifar10.py``, ``minority_al.png`` the rounds of ``experiments/minority_al.py``, ``small_data.png`` the
curves of ``experiments/small_data.py``, ``compress_cifar10.png`` the files of ``experiments/compress_cifar10.py``. Each
other page shows an ``EXPERIMENT`` (see ``experiments/paired.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tutelage.report.conclusions import conclusion
from tutelage.report.markdown import Column, detectable_note, markdown_table
from tutelage.studies import PLAIN
from tutelage.studies.functions import read_lines
from tutelage.studies.metrics import metrics_of
from tutelage.studies.results import Results
from tutelage.studies.statistics import Interval
from tutelage.tasks import find_task

FOLDER = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(FOLDER.parent.parent))

from experiments import cifar10_summary, compress_cifar10, minority_al, paired, small_data  # noqa: E402 - a folder beside the package

# --- the demo

DEMO_HEAD = """\
# The demo

**Question.** Do distillation methods help a student whose training labels are wrong? `tutelage demo` trains six of
them, with eight seeds, in less than four minutes on two CPU cores.

**Data.** Handwritten digits from scikit-learn: 1,797 images of 8 x 8 pixels. 40 % of the training labels are wrong;
test labels are correct. No augmentation.

**Networks.** A `resnet14x0.5` teacher and `resnet8x0.5` students (channels 8-16-32). The teacher is trained on the same
labels as the students, wrong ones included.

**Training.** 20 epochs of batches of 128, SGD with a learning rate of 0.1, eight seeds, evaluation after the last
epoch; bfloat16 autocast on a CPU, torch 2.13. The two stages of FitNets share the 20 epochs. DML trains two networks,
so it costs twice as much. All methods have their default settings; the learning rate and the batch size were set for
speed, not tuned for any method.

**Table.** Means over seeds ± half the width of their 95 % t interval. *Difference to plain* is the mean paired
difference to the plain student of the same seed, in percentage points. *Memorised* is the share of the wrong training
labels that the network predicts."""

DEMO_TAIL = """\
**Limits.** Students memorise many wrong labels here because there is no augmentation: with random crops by one pixel
they memorise hardly any, and there is little to gain. [nine-methods.md](nine-methods.md) has all nine methods with
crops and other data."""


def demo_page() -> str:
    """The page of the demo."""
    results = measured(FOLDER / "demo.jsonl", "digits", "0.4")
    text = " ".join([conclusion(results.table()), *detectable(results)])
    parts = [DEMO_HEAD, table(results), text, DEMO_TAIL]
    return "\n\n".join([*parts, "Raw results: [demo.jsonl](demo.jsonl), one line a run.\n"])


# --- the nine methods

NINE_HEAD = """\
# The nine methods of the study

**Question.** Sarfraz, Arani and Zonooz (2020) compare nine distillation methods and report that distillation
consistently generalises better than plain training, also with label noise. Which of the methods help small networks
with short training on a CPU, with correct labels and with label noise?

**Protocol.** Each method has its default parameters and is compared with the plain student of the same seed. Students
of one seed share initial weights, batches, label noise and teacher. Label noise is symmetric: 40 % of the training
labels are replaced by one of the other classes. The teacher is trained on the same labels, wrong ones included; test
labels are clean. Evaluation is after the last epoch. Nothing was tuned.

**Scale.** Everything here is **CPU-scale**: small networks, few epochs. The study's own protocol (200 epochs, WRN-40-2
teaching WRN-16-2 on all of CIFAR-10) takes a GPU and has not been run. The two stages of FitNets and FSP share the
epochs of the other methods. DML trains two networks. BSS, with up to ten attack steps per batch, took three to fourteen
times as long as the plain student. `training_seconds` in the raw files were measured on a busy machine.

**Tables.** Accuracy is the mean over seeds ± the standard deviation over seeds. *Difference to plain* is the mean
paired difference to the plain student, in percentage points, ± half the width of its 95 % t interval. *Memorised* is
the share of the wrong training labels that the network predicts; it and *ECE* have intervals of the same kind.

![Differences to the plain student by method, with 95 % intervals](nine-methods.png)

Reproduce with `python -m experiments.nine_methods digits`, `... fashion --source idx:FOLDER` and
`... cifar10 --source npz:FILE`, then `python docs/make_results.py`. To run a part: `--methods sp rkd --seeds 2`.
"""

DATA = {
    "digits": "Digits: 1,437 training images of 8 x 8; `resnet14x0.5` teaches `resnet8x0.5`, 20 epochs, random crops",
    "fashion": (
        "Fashion-MNIST: 10,000 training images of 28 x 28, 1,000 a class; a ResNet-8 with channels 32-64-128 teaches "
        "one with 8-16-32, first convolutions with stride 4, 8 epochs, no augmentation"
    ),
    "cifar10": (
        "CIFAR-10: 10,000 training images of 32 x 32, 1,000 a class; a ResNet-8 with channels 32-64-128 teaches "
        "one with 8-16-32, first convolutions with stride 4, 8 epochs, no augmentation"
    ),
}
NOISE = {"0": "correct labels", "0.4": "40 % of the labels wrong"}


def nine(data: str, noise: str) -> Results | None:
    """The results on a data set with a noise rate; ``None`` if there are none."""
    return measured(FOLDER / "nine-methods" / f"{data}-noise-{noise}.jsonl", data, noise)


ORDER = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


def nine_page() -> str:
    """The page of the nine methods."""
    parts = [NINE_HEAD]
    for data, title in DATA.items():
        parts.append(f"## {title}\n")
        for noise, labels in NOISE.items():
            results = nine(data, noise)
            if results is None:
                parts.append(f"### {data}, {labels}\n\nNot run yet.\n")
                continue
            text = " ".join([conclusion(results.table()), *detectable(results), *falling_short(results)])
            file = f"nine-methods/{data}-noise-{noise}.jsonl"
            source = f"Raw results: [{file}]({file}), one line a run.\n"
            seeds = len(results.study["seeds"])
            parts += [f"### {data}, {labels}, {seeds} seeds\n", f"{text}\n", table(results, spread=True), "", source]
    return "\n".join(parts)


def nine_figure() -> None:
    """Write the figure: differences to the plain student, one panel for each data set and noise rate."""
    panels = {
        f"{data}, {labels}": {
            row.cell.method: row.gain for row in results.table() if row.cell.method in ORDER and row.gain is not None
        }
        for data in DATA
        for noise, labels in NOISE.items()
        if (results := nine(data, noise))
    }
    draw_gains(panels, FOLDER / "nine-methods.png")


_ACCENT, _GREY = "#1f6f8b", "#8a8f98"


def draw_gains(panels: Mapping[str, Mapping[str, Interval]], path: Path) -> None:
    """Write a PNG: each method's difference to the plain student with its interval, one panel for each title."""
    panels = {title: gains for title, gains in panels.items() if gains}
    most_rows = max(len(gains) for gains in panels.values())
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        lines = (len(panels) + 1) // 2
        columns = min(2, len(panels))
        figure = Figure(figsize=(5 * columns, lines * (1.1 + 0.3 * most_rows)), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, (title, gains) in zip(axes, panels.items(), strict=False):
            for index, gain in enumerate(gains.values()):
                _draw_gain(axis, index, gain)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(gains)), list(gains))
            axis.invert_yaxis()
            axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlabel("difference to plain, percentage points (95 % interval)")
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.savefig(path, dpi=150)


def _draw_gain(axis: Axes, index: int, gain: Interval) -> None:
    """A dot with its interval; grey if the interval includes 0."""
    colour = _ACCENT if gain.low > 0 or gain.high < 0 else _GREY
    axis.plot([100 * gain.low, 100 * gain.high], [index, index], color=colour, linewidth=2, solid_capstyle="butt")
    axis.plot(100 * gain.mean, index, "o", color=colour, markersize=7)


# --- rounds

_COLOURS = ("#8a8f98", "#c8553d", "#e0a030", "#1f6f8b", "#5b8e4a", "#7a4fa3")


def draw_curves(
    panels: Mapping[str, Mapping[str, Mapping[int, Interval]]], path: Path, position: str, *, scale: str = "linear"
) -> None:
    """Write a PNG: means with bands for their intervals, a panel for each title, a line per row.

    Args:
        panels: by title, row and position on the x-axis.
        path: of the PNG.
        position: the title of the x-axis.
        scale: of the x-axis, "linear" or "log".
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots(1, len(panels))
        colours = dict(zip(next(iter(panels.values())), _COLOURS, strict=False))
        for axis, (title, rows) in zip(axes, panels.items(), strict=True):
            for row, means in rows.items():
                numbers, values = [*means], [*means.values()]
                axis.plot(numbers, [value.mean for value in values], color=colours[row], label=row)
                low, high = [value.low for value in values], [value.high for value in values]
                axis.fill_between(numbers, low, high, color=colours[row], alpha=0.15, linewidth=0)
            axis.set_xscale(scale)
            if scale == "log":
                axis.set_xticks(numbers, [f"{number}" for number in numbers])
                axis.minorticks_off()
            else:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlabel(position)
        if len(colours) > 1:
            axes[0 if scale == "log" else -1].legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150)


# --- both


def measured(file: Path, data: str, noise: str) -> Results | None:
    """A study of one condition, from its raw results; ``None`` if there are none."""
    lines = read_lines(file)
    if not lines:
        return None
    condition = {"data": data, "noise": noise, "imbalance": None, "per_class": None, "teacher_labels": "noisy"}
    names = sorted({line["row"] for line in lines}, key=lambda name: (_rank(name), name))
    runs = [
        dict.fromkeys(metrics_of(find_task("classification")))
        | line["test"]
        | {"memorised": line["train"]["memorised"], "seed": line["seed"], "method": line["row"]}
        | {**condition, "teacher": "", "student": "", "status": "done", "error": None}
        for line in sorted(lines, key=lambda line: names.index(line["row"]))
    ]
    return Results(file.parent, {"seeds": sorted({line["seed"] for line in lines})}, tuple(runs))


def _rank(name: str) -> int:
    order = ("teacher", PLAIN, *ORDER)
    return order.index(name) if name in order else len(order)


TOLERATED = 0.005  # the accuracy that a default may lose; see docs/methods/weights.md


def below(results: Results) -> list[str]:
    """The methods of the nine that lose more than ``TOLERATED`` in the mean."""
    gains = {row.cell.method: row.gain for row in results.table() if row.gain and row.cell.method in ORDER}
    return [name for name, gain in gains.items() if gain.mean < -TOLERATED]


def falling_short(results: Results) -> list[str]:
    """A sentence with the methods of ``below``, if there are any."""
    names = below(results)
    return [f"Mean more than half a percentage point below the plain student: {'; '.join(names)}."] if names else []


def detectable(results: Results) -> list[str]:
    """A sentence with the differences that would be detected for the methods whose interval includes 0, if any."""
    methods = {row.cell.method: row for row in results.table() if row.cell.method != PLAIN}
    note = detectable_note(COLUMNS["accuracy"], methods)
    return [note] if note else []


COLUMNS = {
    "accuracy": Column("test accuracy, %", digits=2),
    "memorised": Column("memorised, %", digits=2),
    "ece": Column("ECE", share=False, digits=3),
}


def table(results: Results, *, spread: bool = False) -> str:
    """The rows of one condition; with ``spread`` accuracy has its standard deviation over seeds, not its interval."""
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
    nine_figure()
    (FOLDER / "cifar10.md").write_text(cifar10_summary.page(), encoding="utf-8")
    if panels := cifar10_summary.gains():
        draw_gains(panels, FOLDER / "cifar10.png")
    for question in cifar10_summary.QUESTIONS:
        if curves := cifar10_summary.training_curves(question):
            draw_curves(curves, FOLDER / f"cifar10-{question}.png", "epoch")
    draw_curves(minority_al.curves(), FOLDER / "minority_al.png", "labels requested")
    draw_curves(small_data.curves(), FOLDER / "small_data.png", "training images of each class", scale="log")
    compress_cifar10.draw(FOLDER / "compress_cifar10.png")
    for experiment in paired.installed():
        if not experiment.file.exists():  # nothing has been run yet
            continue
        (FOLDER / f"{experiment.name}.md").write_text(paired.page(experiment), encoding="utf-8")
