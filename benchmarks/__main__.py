"""Measure the numbers of docs/performance.md.

    python -m benchmarks                    all benchmarks, an hour and a half on two cores
    python -m benchmarks overhead stored    some benchmarks
    python -m benchmarks --short            a quick check that the commands work

Each benchmark writes its numbers and the machine to ``benchmarks/results/NAME.json``, or to ``results/gpu/NAME.json``
if there is a GPU, which then runs all benchmarks except ``floor``. ``--short`` writes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.images import images
from benchmarks.pairs import Numbers
from benchmarks.processes import allocator, imports, memory
from benchmarks.repositories import repositories
from benchmarks.runs import accuracy, cached, methods, research, study
from benchmarks.setting import device
from benchmarks.steps import compiled, floor, loader, overhead, precision
from benchmarks.students import students
from benchmarks.time_to_accuracy import time_to_accuracy
from benchmarks.tracking import tracking
from tutelage.allocator import reuse_freed_memory
from tutelage.config import Hardware
from tutelage.training.hardware import resolve

FOLDER = Path(__file__).resolve().parent

PARTS: dict[str, Callable[[bool], Numbers]] = {
    part.__name__: part
    for part in (
        overhead,
        floor,
        loader,
        images,
        precision,
        compiled,
        research,
        repositories,
        accuracy,
        time_to_accuracy,
        methods,
        cached,
        students,
        tracking,
        study,
        allocator,
        memory,
        imports,
    )
}


def machine() -> Numbers:
    """A description of this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{models[0]}, {len(models)} of its threads" if models else cpu
    kind = device().type
    gpu = None if kind == "cpu" else torch.cuda.get_device_name() if kind == "cuda" else kind
    return {
        "processor": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "precision": resolve(Hardware()).precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the benchmarks title on the command line."""
    parser = argparse.ArgumentParser(description="Measure how fast tutelage is.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="benchmarks to run (default: all)")
    parser.add_argument("--short", action="store_true", help="run as little as possible and write nothing")
    arguments = parser.parse_args()
    reuse_freed_memory()  # as the command line does, for every variant alike
    console = Console()
    folder = FOLDER / "results" / ("" if device().type == "cpu" else "gpu")
    for name in arguments.parts or PARTS:
        measured = PARTS[name](arguments.short)
        console.print(_table(name, measured))
        if not arguments.short:
            record = {"command": f"python -m benchmarks {name}", "machine": machine(), "measured": measured}
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _table(name: str, measured: Numbers) -> Table:
    table = Table(title=f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", title_justify="left")
    for column in ("", "", "ratio", "quartiles", "median, s"):
        table.add_column(column)
    for group, entries in measured.items():
        for row, value in entries.items():
            if isinstance(value, dict):
                quartiles = " – ".join(f"{bound:.3f}" for bound in value["quartiles"])
                table.add_row(group, row, f"{value['ratio']:.3f}", quartiles, f"{value['median_seconds']:.3f}")
            else:
                table.add_row(group, row, str(value), "", "")
    return table


if __name__ == "__main__":
    main()
