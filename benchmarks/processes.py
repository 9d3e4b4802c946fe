"""Memory of a training process and time of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.pairs import Numbers, as_json, compare

ROOT = Path(__file__).resolve().parents[1]

_MEMORY = """
import sys, time
from pathlib import Path
from benchmarks.runs import one_epoch
from benchmarks.setting import network, random_images
data = random_images(int(sys.argv[1]))
model = network("resnet8x0.5", data)
def peak():  # not getrusage, whose maximum includes the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
start = time.perf_counter()
one_epoch(model, None, data)
print(before, peak(), time.perf_counter() - start)
"""


def memory(short: bool) -> Numbers:
    """Peak memory of a training process and time per image, for two sizes of the data set; an image has 3 KiB."""
    measured: Numbers = {}
    for samples in (500, 1000) if short else (5000, 50000):
        process = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(samples)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        *kibibytes, seconds = process.stdout.split()
        before, peak = (int(number) // 1024 for number in kibibytes)
        pace = round(1000 * float(seconds) / samples, 3)
        measured[f"{samples} images"] = {"before training, MiB": before, "peak, MiB": peak, "ms per image": pace}
    return measured


def imports(short: bool) -> Numbers:
    """Time of ``import tutelage`` beyond torch's own import (goal: 0.3 s), and of ``tutelage --help`` (goal: 0.5 s)."""
    rounds = 1 if short else 7

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    candidates = {
        "import torch": python("import torch"),
        "import torch, tutelage": python("import torch, tutelage"),
        "tutelage --help": lambda: subprocess.run(
            [sys.executable, "-m", "tutelage", "--help"], check=True, capture_output=True
        ),
        "tutelage train with a wrong argument": lambda: subprocess.run(
            [sys.executable, "-m", "tutelage", "train", "--epochs", "x"], check=False, capture_output=True
        ),
    }
    return {"": as_json(compare(candidates, "import torch", rounds))}
