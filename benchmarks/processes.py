"""What a process costs: its memory, its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.pairs import Numbers, as_json, compare

ROOT = Path(__file__).resolve().parents[1]

_MEMORY = """
import resource, sys, time, torch
from benchmarks.runs import one_epoch
from benchmarks.setting import network, pictures
data = pictures(int(sys.argv[1]))
model = network("resnet8x0.5", data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
one_epoch(model, None, data)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)
"""


def memory(short: bool) -> Numbers:
    """The most memory of a process that trains, and its time, as the data grows tenfold; a picture is 3 KiB."""
    found: Numbers = {}
    for samples in (500, 1000) if short else (5000, 50000):
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(samples)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        *kibibytes, seconds = done.stdout.split()
        before, most = (int(number) // 1024 for number in kibibytes)
        pace = round(1000 * float(seconds) / samples, 3)
        found[f"{samples} pictures"] = {"before training, MiB": before, "most, MiB": most, "ms a picture": pace}
    return found


def imports(short: bool) -> Numbers:
    """Seconds of ``import tutelage`` beyond torch's own import (goal 0.3), and of ``tutelage --help`` (goal 0.5)."""
    rounds = 1 if short else 7

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    ways = {
        "import torch": python("import torch"),
        "import torch, tutelage": python("import torch, tutelage"),
        "tutelage --help": lambda: subprocess.run(
            [sys.executable, "-m", "tutelage", "--help"], check=True, capture_output=True
        ),
        "a mistake in an argument": lambda: subprocess.run(
            [sys.executable, "-m", "tutelage", "train", "--epochs", "x"], check=False, capture_output=True
        ),
    }
    return {"": as_json(compare(ways, "import torch", rounds))}
