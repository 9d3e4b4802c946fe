"""A study in a process of its own that is stopped and killed resumes exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest


def start(out: Path, tiny_npz: str) -> subprocess.Popen[bytes]:
    words = ["study", "nine", "--data", tiny_npz, "--students", "resnet8x0.25", "--teachers", "resnet8x0.25"]
    words += ["--noise", "0.4", "--methods", "hinton,dml", "--seeds", "1", "--set", "epochs=50"]
    words += ["--set", "batch_size=8", "--set", "device=cpu", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tutelage", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A shell that starts a job in the background makes it deaf to Ctrl-C; a person's does not.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(280)
def test_stopped_and_killed_study_resumes_exactly(tiny_npz: str, tmp_path: Path) -> None:
    reference_process = start(tmp_path / "whole", tiny_npz)
    _, output = reference_process.communicate(timeout=200)
    assert reference_process.returncode == 0, output.decode()[-2000:]

    out = tmp_path / "out"

    def at_work(start_time: float) -> bool:
        """Whether a run that is not finished has written down an epoch since."""
        files = [file for file in out.glob("runs/*/metrics.jsonl") if not (file.parent / "result.json").exists()]
        return any(file.stat().st_mtime >= start_time and file.stat().st_size for file in files)

    for signal_number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        start_time = time.time()
        process = start(out, tiny_npz)
        wait_for(lambda start_time=start_time: at_work(start_time), process)
        process.send_signal(signal_number)
        process.communicate(timeout=60)
        assert process.returncode == code
        deadline = time.monotonic() + 30
        while is_alive(process.pid):  # no worker is left behind, not even by SIGKILL
            assert time.monotonic() < deadline
            time.sleep(0.05)
    last = start(out, tiny_npz)
    standard_output, output = last.communicate(timeout=200)
    assert last.returncode == 0, output.decode()[-2000:]
    assert b"| hinton |" in standard_output
    assert (out / "report.html").exists()

    def numbers(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "results.jsonl").read_text().splitlines()
        timed = ("seconds", "latency_ms", "command")  # the command names the folder of the teacher
        return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]

    assert numbers(out) == numbers(tmp_path / "whole")
