"""Six short runs whose students and numbers must never change.

``tests/golden.json`` has a record of their hashes and results for each kind of machine. ``python -m tests.golden
FOLDER`` makes or replaces that of this machine: on another kind of machine, or after a change that is meant to move
numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_suffix(".json")

# Kernels round differently on processors with other instructions, and with other numbers of threads.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

SHORT: dict[str, Any] = {
    "epochs": 2,
    "per_class": 30,
    "batch_size": 32,
    "device": "cpu",
    "precision": "float32",
    "noise": "0.2",
}
GAN = SHORT | {"epochs": 1, "noise": None}
CRITIC = {"critic_width": 0.1, "critic_steps": 2}


def record(folder: Path) -> dict[str, Any]:
    """Train and describe: by method, the SHA-256 of the student's file and the numbers that do not depend on time."""
    import torch

    import tutelage

    torch.set_num_threads(1)
    teacher = folder / "teacher"
    runs = {"plain": tutelage.train("resnet14x0.5", "digits", out=teacher, **SHORT)}
    for method in ("hinton", "fitnet", "dml", "pdiff"):
        teachers = [] if method in ("dml", "pdiff") else [str(teacher)]
        runs[method] = tutelage.distill(
            teachers, "resnet8x0.5", "digits", method=method, out=folder / method, **SHORT | {"seed": 1}
        )
    generator = tutelage.train(
        "dcganx0.2", "digits", out=folder / "generator", **GAN | {"method": "akdg", "settings": CRITIC | {"weight": 0}}
    )
    runs["akdg"] = tutelage.distill(
        str(generator.folder), "mlp-ganx0.1", "digits", method="akdg", out=folder / "akdg", settings=CRITIC, **GAN
    )
    return {name: _described(run) for name, run in runs.items()}


def _described(run: Any) -> dict[str, Any]:
    file = run.folder / "student.safetensors"
    result = json.loads((run.folder / "result.json").read_text())
    numbers: dict[str, Any] = {key: result[key] for key in ("settings", "forward_passes", "selected") if key in result}
    for part in ("test", "train"):  # the single numbers; curves are made of the same predictions
        numbers[part] = {
            name: value for name, value in result.get(part, {}).items() if not isinstance(value, list | dict)
        }
    return {"student": hashlib.sha256(file.read_bytes()).hexdigest(), "result": numbers}


def in_fixed_environment(folder: Path) -> dict[str, Any]:
    """``record`` in a process of its own, in which kernels and threads are those of the stored numbers."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.golden", "--record", str(folder)],
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    records: dict[str, Any] = json.loads(process.stdout)
    return records


def this_machine() -> dict[str, str]:
    """The software and the hardware that the numbers depend on: libraries have other kernels for each vendor."""
    import torch

    information = Path("/proc/cpuinfo")
    vendor = re.search(r"vendor_id\s*: (\w+)", information.read_text() if information.exists() else "")
    return {"torch": torch.__version__, "machine": platform.machine(), "vendor": vendor[1] if vendor else "unknown"}


def stored() -> dict[str, Any] | None:
    """The stored runs of this machine, if there are any."""
    records: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return next((record["runs"] for record in records if record["machine"] == this_machine()), None)


if __name__ == "__main__":
    if sys.argv[1] == "--record":
        print(json.dumps(record(Path(sys.argv[2]))))
    else:
        runs = in_fixed_environment(Path(sys.argv[1]))
        others = [entry for entry in json.loads(GOLDEN.read_text()) if entry["machine"] != this_machine()]
        records = [*others, {"machine": this_machine(), "runs": runs}]
        GOLDEN.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
