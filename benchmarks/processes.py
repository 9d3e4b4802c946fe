"""Memory of a training process, the allocator's share of its time, and time of imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.pairs import Numbers, as_json, compare, ratio_of

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
        *kibibytes, seconds = _python(_MEMORY, str(samples)).split()
        before, peak = (int(number) // 1024 for number in kibibytes)
        pace = round(1000 * float(seconds) / samples, 3)
        measured[f"{samples} images"] = {"before training, MiB": before, "peak, MiB": peak, "ms per image": pace}
    return measured


_ALLOCATOR = """
import sys, time
from benchmarks.runs import one_epoch
from benchmarks.setting import network, random_images
from tutelage.allocator import reuse_freed_memory
from tutelage.evaluation.predict import predict
work, memory, samples = sys.argv[1:]
data = random_images(int(samples))
model = network("resnet20", data)
if memory == "reused":
    assert reuse_freed_memory()
def run():
    if work == "evaluation":
        predict(model, data.train, device="cpu")
    else:
        one_epoch(model, None, data, int(work))
run()
start = time.process_time()
run()
print(time.process_time() - start)
"""


def allocator(short: bool) -> Numbers:
    """Processor time of a ResNet-20, relative to glibc's defaults, if freed memory is reused."""
    titles = {"returned": "memory is returned to the system", "reused": "memory is reused"}
    works = {"64": "training, batches of 64", "256": "training, batches of 256", "evaluation": "evaluation"}
    measured: Numbers = {}
    for work, title in works.items():
        times: dict[str, list[float]] = {name: [] for name in titles}
        for _ in range(1 if short else 3):
            for name, seconds in times.items():
                seconds.append(float(_python(_ALLOCATOR, work, name, "512" if short else "2560")))
        measured[title] = as_json({titles[name]: ratio_of(times[name], times["returned"]) for name in titles})
    return measured


def _python(code: str, *arguments: str) -> str:
    """The output of a program in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return process.stdout


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
