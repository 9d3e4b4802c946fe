"""A ResNet-56 for CIFAR-10, compressed in several ways: python -m experiments.compress_cifar10.

``runs/data`` must contain ``cifar10.npz`` (all of CIFAR-10) and ``cifar10-resnet56.safetensors``. The networks and
their ONNX files are below ``runs/compress_cifar10``.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

import tutelage
from experiments.cifar10 import DATA, CifarExperiment
from experiments.paired import main
from tutelage.compression.variants import Variant, front, knee
from tutelage.data import Data, open_data
from tutelage.evaluation.cost import flops, parameters
from tutelage.models.onnx_network import OnnxNetwork
from tutelage.models.packed import packable, save_packed
from tutelage.models.surgery.mask import fixed_zeros
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.runs.int8 import export_int8
from tutelage.runs.models import open_model
from tutelage.studies.functions import values_of
from tutelage.tasks import find_task

FOLDER = Path("runs") / "compress_cifar10"
TEACHER = f"resnet56@{DATA / 'cifar10-resnet56.safetensors'}"
TRAINING, TEST, EPOCHS = 5_000, 2_000, 1
DENSE, FLOAT, INT8 = "dense", "student.onnx", "student-int8.onnx"
LOWEST = 0.5  # the accuracy of the files in the picture
ROUNDS = 100  # in which latencies are measured, in turn

HALF: Mapping[str, Any] = {"resource": "flops", "target": 0.5}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "uniform width": ("uniform_width", {**HALF, "start": "teacher"}),
    "compact CNN": ("compact_cnn", {**HALF, "start": "teacher", "strength": 10.0, "finish": "finetune"}),
    "MI pruning": ("mi_pruning", {"dense": "teacher", "keep": 0.5, "tolerance": 1.0, "alpha": 0.9}),
    "MINT": (
        "mint",
        {"start": "teacher", "target": 0.7, "cap": 0.95, "groups": 8, "per_class": 40, "alpha": 0.9},
    ),
    "low bit, rate 0.001": ("low_bit", {"bits": 4, "start": "teacher", "per_class": 50}),
    "low bit": ("low_bit", {"bits": 4, "start": "teacher", "per_class": 50, "joint_rate": 1e-4}),
}


@functools.cache
def images() -> Data:
    """The first training and test images of CIFAR-10."""
    data = open_data(f"npz:{DATA / 'cifar10.npz'}")
    train, test = data.train.subset(torch.arange(TRAINING)), data.test.subset(torch.arange(TEST))
    return replace(data, train=train, test=test, views=data.views.limited(EPOCHS))


def compressed(row: str, seed: int, folder: Path) -> Tapped:
    """The network of a row, trained on the images."""
    method, settings = ROWS[row]
    return tutelage.distill(
        TEACHER,
        "resnet56",
        images(),
        method=method,
        settings=dict(settings),
        epochs=EPOCHS,
        lr=0.02,
        schedule="cosine",
        warmup=0.0,
        validation=0.0,
        batch_size=128,
        teacher_cache=str(FOLDER / "cache"),
        seed=seed,
        device="cpu",
        workers=0,
        out=folder,
    ).model


@functools.cache
def dense() -> Tapped:
    """The network itself."""
    return open_model(TEACHER, images())


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Compress, export and measure."""
    torch.set_num_threads(1)
    if condition == "latency":
        return latencies(row, seed)
    model = dense() if row == DENSE else compressed(row, seed, folder / "run")
    example = find_task("classification").example(model, images())
    measured = {
        "flops": flops(model, example) / flops(dense(), example),
        "parameters": (parameters(model) - fixed_zeros(model.module)) / parameters(dense()),
    }
    return measured | files(model, folder)


def files(model: Tapped, folder: Path) -> dict[str, float]:
    """Export a network; the accuracies and sizes of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    task = find_task("classification")
    comparison = export_int8(model, images(), task, folder / INT8, float32=folder / FLOAT)
    packed = float("nan")
    if packable(model.module):
        packed = save_packed(folder / "packed.safetensors", model.module, {}) / 1000
    return {
        "accuracy": comparison.float32.score,
        "int8_accuracy": comparison.int8.score,
        "size": comparison.float32.size / 1000,
        "int8_size": comparison.int8.size / 1000,
        "packed": packed,
    }


def latencies(row: str, seed: int) -> dict[str, float]:
    """The time of one image in onnxruntime with one thread, in ms: the smallest of many passes of all files in turn."""
    folders = [FOLDER / "all" / f"{name}-{seed}".replace(" ", "-") for name in (DENSE, row)]
    networks = [OnnxNetwork(folder / kind, threads=1) for folder in folders for kind in (FLOAT, INT8)]
    example = find_task("classification").example(dense(), images())
    best = [math.inf] * len(networks)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for number, network in enumerate(networks):
                network(example)  # reads its weights into the caches
                start = time.perf_counter()
                network(example)
                best[number] = min(best[number], 1000 * (time.perf_counter() - start))
    return {"ms": best[2], "int8_ms": best[3], "share": best[2] / best[0], "int8_share": best[3] / best[0]}


def means() -> list[Variant]:
    """The files of all rows with the means over seeds; latencies are shares, sizes kB. A packed file has no latency."""
    columns = {
        "": ("accuracy", "size", "share"),
        " INT8": ("int8_accuracy", "int8_size", "int8_share"),
        " packed": ("accuracy", "packed", None),
    }

    def mean(metric: str | None, row: str, condition: str = "all") -> float:
        values = values_of(EXPERIMENT, EXPERIMENT.file, condition, metric)[row] if metric else {}
        return statistics.mean(values.values()) if values else math.nan

    return [
        Variant(row + kind, mean(score, row), 0, 0, round(size), mean(share, row, "latency"), "")
        for kind, (score, sizes, share) in columns.items()
        for row in EXPERIMENT.rows
        if not math.isnan(size := mean(sizes, row))
    ]


def draw(path: Path) -> None:
    """Write a PNG: accuracy against latency and against size, with the front and its knee."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    from tutelage.report.figures.point_labels import label_points

    titles = {
        "latency": "latency of one image, by that of the dense network in float32",
        "size": "size of the file, kB",
    }
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = list(zip(figure.subplots(1, 2), titles.items(), strict=True))
        for axis, (panel, title) in panels:
            variants = drawn(panel)
            best = front(variants, attrgetter(panel), attrgetter("score"))
            turning = knee(best, attrgetter(panel), attrgetter("score"))
            axis.plot([getattr(v, panel) for v in best], [100 * v.score for v in best], color="#8a8f98", linewidth=1)
            place = getattr(turning, panel), 100 * turning.score
            axis.plot(*place, "o", markersize=15, markerfacecolor="none", color="black")
            for variant in variants:
                colour = "#c8553d" if variant.name.startswith(DENSE) else "#1f6f8b"
                marker = "s" if "INT8" in variant.name else "D" if "packed" in variant.name else "o"
                axis.plot(getattr(variant, panel), 100 * variant.score, marker, color=colour, markersize=6)
            axis.set_xscale("log")
            axis.margins(x=0.25, y=0.1)
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(title)
            axis.set_ylabel("test accuracy, %")
        figure.draw_without_rendering()  # so that the axes have their final place
        for axis, (panel, _) in panels:
            variants = drawn(panel)
            xs, ys = (np.array([attrgetter(name)(v) for v in variants]) for name in (panel, "score"))
            names = [variant.name for variant in variants]
            label_points(axis, names, xs, 100 * ys, range(len(variants)), length=32)
        figure.savefig(path, dpi=150)


def drawn(panel: str) -> list[Variant]:
    """The variants in a panel of the picture."""
    return [v for v in means() if v.score > LOWEST and not math.isnan(getattr(v, panel))]


EXPERIMENT = CifarExperiment(
    name="compress_cifar10",
    head=f"""
# A ResNet-56 for CIFAR-10, compressed

**Question.** What remains of a real network on real images after each way of `tutelage compress`, under the same short
training: accuracy, size and latency of the exported files, in float32 and INT8?

**Data and network.** The first {TRAINING:,} training images of CIFAR-10 with random crops and flips, and the first
{TEST:,} test images. The network is a published ResNet-56 (853,018 parameters), whose accuracy on all 10,000 test
images is 93.39 %. It has been trained on all 50,000 training images, these included.

**Rows.** Each starts from the weights of the network, which is also its teacher, with the settings of the way in
`tutelage compress`. *Uniform width*, *compact CNN* and *MI pruning* have the target `flops=0.5`; *MINT* fixes 30 % of
all parameters at 0 (`target=0.7`), by mutual information; *low bit* has weights of 4 bits in inner layers, from 50
images of each class, with 20 steps for each block and 20 for the whole, at a rate of 0.0001 in the latter (the
default of the method is 0.001, the other row).

**Protocol.** One epoch of {TRAINING // 128} batches of 128, SGD with a cosine schedule from 0.02 (*low bit*: its own
steps and rate); *compact CNN* has one more, in which the widths are learned. The rate was not tuned. No image is held
out; the last epoch is measured. Three seeds; the intervals are those of seeds, not of the {TEST:,} test images (a
standard error of 0.6 to 0.9 points).

**Columns.** Accuracy is that of the ONNX files in onnxruntime. INT8 files are calibrated on 512 training images. FLOPs
and parameters are shares of those of the network; parameters are those that are not fixed at 0. *Packed* is the
weights file with integers of 4 bits, or without zeros. Latency is that of one image with one thread: the shortest of
{ROUNDS} passes, all files in turn, since the machine had other work. The ring in the picture is the knee of the front;
files with an accuracy below 50 % are not in it.

![Accuracy against latency and size](compress_cifar10.png)
""",
    measure=run,
    rows=(DENSE, *ROWS),
    conditions={"all": "Accuracy and size", "latency": "Latency"},
    columns={
        "accuracy": Column("test accuracy"),
        "int8_accuracy": Column("test accuracy, INT8"),
        "flops": Column("FLOPs"),
        "parameters": Column("parameters"),
        "size": Column("size, kB", share=False, digits=0),
        "int8_size": Column("size, INT8, kB", share=False, digits=0),
        "packed": Column("packed, kB", share=False, digits=0),
        "ms": Column("latency, ms", share=False, digits=2),
        "int8_ms": Column("latency, INT8, ms", share=False, digits=2),
    },
    baseline=DENSE,
    seeds=3,
    tail="""
## What it shows

- **INT8 costs little accuracy**: at most 0.7 points for any file, nothing for the network itself, and a file has about
  a third of the size. It is slower for one image on this processor: 1.4 times for the network itself.
- **Half of the operations are not half of the time.** Only *MI pruning*, which removes whole blocks, halves the latency
  (2.16 to 1.12 ms). *Compact CNN* saves 0.26 ± 0.07 ms, and *uniform width* is slower by 0.29 ± 0.17 ms.
- **Learned widths are better than equal ones** after this short training: *compact CNN* has 87.9 %, 2.9 ± 2.8 points
  more than *uniform width*, which has 3.0 ± 2.5 more than *MI pruning*. *Compact CNN* trains for one epoch more. None
  is near the network itself, 92.9 %.
- *MINT* has the lowest accuracy of the pruned networks, 59 to 79 % depending on the seed, and the most parameters. Its
  ONNX file is larger than that of the network, since it held the mask as well, as those of *low bit* held the scales;
  the export leaves both out since then. Its latency is about the same.
- **4 bits cost nearly nothing**: *low bit* has 92.7 %, 0.2 ± 0.4 points less than the network, in a packed file of 459
  kB, an eighth of the network's. At the default rate of 0.001, stage 2 destroys this deep network (11 %); `tutelage
  compress` has a tenth of it since then.

## What it does not show

- Whether the differences between the ways remain with longer training or tuned rates.
- The latency on an idle machine, on other processors or for batches.
- *Low bit* has the better of two rates, which were compared on the first 500 of these test images with another seed
  and 10 images of each class: 94.2 % for 0.0001, where rounding alone has 91.2 % and the network itself 94.0 %.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
