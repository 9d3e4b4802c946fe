"""A few cases of the campaign of ``tests/kill.py``, without studies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = """
import sys
from pathlib import Path
import signal
from tests.kill import SHORT, Command, FailedError, Moment, import_all, kill_and_resume
import_all()
place = Path(sys.argv[1])
command = Command("plain", ["train", "--model", "resnet8x0.25", *SHORT])
command.run_reference(place / "whole")
moments = {
    "first": [Moment("", "half", 2)],
    "last": [Moment("", "name", command.counts["name"])],
    "twice": [Moment("", "half", 6), Moment("", "line", 1, signal.SIGTERM)],
}
for name, each in moments.items():
    assert kill_and_resume(command, each, place / name), name
(place / "last" / "out" / "student.safetensors").write_bytes(b"other")
try:
    command.compare(place / "last")
except FailedError as error:
    assert "student.safetensors" in str(error)
else:
    raise AssertionError("other bytes pass")
(place / "first" / "out" / ".result.json.0123456789ab.tmp").touch()
try:
    command.compare(place / "first")
except FailedError as error:
    assert ".result.json" in str(error)
else:
    raise AssertionError("a temporary file passes")
"""


@pytest.mark.timeout(250)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaign forks")
def test_a_run_that_is_killed_at_chosen_moments_ends_as_one_that_is_not(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", CASES, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
