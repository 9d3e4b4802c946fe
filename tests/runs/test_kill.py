"""A process that is killed at random moments and started again with the same command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.config import Config
from tutelage.runs import execute

EPOCHS = 6


def start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_after(process: subprocess.Popen[bytes], checkpoint: Path, delay: float) -> None:
    """SIGKILL, so long after the checkpoint has appeared."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline, f"{checkpoint} never came"
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it was through before it was killed: give it more epochs"


@pytest.mark.timeout(280)
def test_a_killed_run_ends_with_the_bytes_of_one_that_never_was(tmp_path: Path) -> None:
    config = Config(data="digits", student="resnet8x0.5", batch_size=128, epochs=EPOCHS, noise="0.3", device="cpu")
    execute(config.replace(student="resnet8", batch_size=64, epochs=2, noise=None), tmp_path / "teacher")
    execute(config.replace(method="hinton", teacher=str(tmp_path / "teacher")), tmp_path / "whole")

    folder = tmp_path / "killed"
    words = ["distill", "--teacher", str(tmp_path / "teacher"), "--data", "digits", "--student", "resnet8x0.5"]
    words += ["--noise", "0.3", "--epochs", str(EPOCHS), "--batch-size", "128", "--device", "cpu"]
    command = [sys.executable, "-m", "tutelage", *words, "--out", str(folder)]
    generator = random.SystemRandom()
    for epoch in (1, 3):
        delay = generator.uniform(0, 0.3)
        print(f"killed {delay:.3f} s after epoch {epoch}")  # shown when the test fails
        kill_after(start(command), folder / "checkpoints" / f"fit-00-epoch-{epoch:05d}.ckpt", delay)
        assert not (folder / "result.json").exists()
    last = start(command)
    _, output = last.communicate(timeout=200)
    assert last.returncode == 0, output.decode()[-2000:]

    assert (folder / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
    entries = {entry.name for entry in folder.iterdir()}
    assert entries == {entry.name for entry in (tmp_path / "whole").iterdir()} | {"load.py"}  # which the command adds
    histories = []
    for path in (folder, tmp_path / "whole"):
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
        histories.append([{key: value for key, value in record.items() if key != "seconds"} for record in records])
    assert histories[0] == histories[1]
    results = [json.loads((path / "result.json").read_text()) for path in (folder, tmp_path / "whole")]
    for key in ("test", "train", "teacher", "selected", "data", "settings", "command"):
        assert results[0][key] == results[1][key], key
