"""Try an installed tutelage in the current folder: ``python release/smoke.py``, outside of the repository.

Trains a network and a student on digits for one epoch, lists the methods, and makes a small study with its report.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def command(*words: str) -> str:
    """The output of a ``tutelage`` command, which must succeed."""
    done = subprocess.run([sys.executable, "-m", "tutelage", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"tutelage {' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Run everything; fail at the first thing that does not work."""
    import tutelage

    package = Path(tutelage.__file__).parent
    print(f"tutelage {tutelage.__version__} in {package}")
    teacher = tutelage.train("resnet8", "digits", epochs=1, out="runs/teacher").model
    student = tutelage.distill(teacher, "resnet8x0.5", "digits", method="at", epochs=1)
    assert 0 <= student.metrics["test"]["accuracy"] <= 1
    methods = command("methods")
    assert all(name in methods for name in ("hinton", "fitnet", "occlusion")), methods
    study = ("--methods", "hinton", "--teachers", "resnet8x0.5", "--noise", "0", "--epochs", "1", "--seeds", "2")
    command("study", "nine", *study, "--out", "runs/study")
    command("report", "runs/study")
    page = Path("runs/study/report.html").read_text(encoding="utf-8")
    assert "<style" in page
    assert "<script" in page
    assert "hinton" in page
    print("training, distilling, methods, study and report work")


if __name__ == "__main__":
    main()
