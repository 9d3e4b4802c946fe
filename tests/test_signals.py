"""SIGTERM and SIGHUP end a command like Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tutelage.signals import termination_signals_interrupt


@pytest.fixture
def handlers() -> Iterator[Callable[..., None]]:
    """``handlers(SIGTERM=..., SIGHUP=...)`` for the length of a test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def set_(**new_handlers: signal.Handlers) -> None:
        for name, handler in new_handlers.items():
            signal.signal(getattr(signal, name), handler)

    yield set_
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_in_process(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)  # a handler of Python's runs between two of its instructions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_are_keyboard_interrupts(number: int, handlers: Callable[..., None]) -> None:
    previous_handler = signal.signal(number, signal.SIG_DFL)  # the tests may run where SIGHUP is ignored
    try:
        with pytest.raises(KeyboardInterrupt), termination_signals_interrupt():
            raise_in_process(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, previous_handler)


def fail_after(number: int) -> None:
    try:
        raise_in_process(number)
    finally:
        raise RuntimeError("worker exited unexpectedly")


def test_an_error_that_follows_a_signal_is_an_interrupt() -> None:
    """The signal may have ended a worker process, too, and a closed terminal cannot be written to."""
    with pytest.raises(KeyboardInterrupt), termination_signals_interrupt():
        fail_after(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="for itself"), termination_signals_interrupt():
        raise RuntimeError("for itself")


class Slow:
    """Its finaliser takes a while, as that of a data loader with worker processes does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        raise_in_process(self.number)


def dropped_in_a_finaliser(number: int) -> None:
    Slow(number)
    time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_arrives_in_a_finaliser_is_not_lost(number: int) -> None:
    if number == signal.SIGINT and signal.getsignal(number) is not signal.default_int_handler:
        pytest.skip("Ctrl-C is ignored here")
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), termination_signals_interrupt():
        dropped_in_a_finaliser(number)
    assert sys.unraisablehook is hook


def test_ignored_signal_stays_ignored(handlers: Callable[..., None]) -> None:
    handlers(SIGHUP=signal.SIG_IGN)
    with termination_signals_interrupt():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_another_thread_changes_no_handlers() -> None:
    inside: list[object] = []

    def look() -> None:
        with termination_signals_interrupt():
            inside.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.timeout(200)
def test_a_command_stops_at_sigterm_as_at_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train", "--model", "resnet8x0.25", "--data", "digits", "--per-class", "20", "--epochs", "100000"]
    command = [sys.executable, "-m", "tutelage", *words, "--device", "cpu", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 100
        while not list((folder / "checkpoints").glob("*.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.decode().splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in output.decode()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
