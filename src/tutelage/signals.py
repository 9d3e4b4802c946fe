"""Signals that ask a process to end, treated as Ctrl-C is: what is being written is finished or left as it was."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def termination_signals_interrupt() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise ``KeyboardInterrupt``, as SIGINT does; afterwards they do what they did.

    SIGTERM is what ``kill``, ``timeout``, schedulers and containers send, SIGHUP what a closed terminal sends. A signal
    that is ignored (``nohup``) stays ignored. An error that follows such a signal is the interrupt's: a worker process
    that the signal ended, too, or a terminal that is gone. An interrupt that Python drops, since it came in a
    finaliser, comes again. Outside the main thread nothing changes: Python allows it no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = None
    within = True

    def interrupt(number: int, frame: object) -> None:
        nonlocal arrived
        arrived = number
        raise KeyboardInterrupt

    def send(number: int) -> None:
        if within:
            os.kill(os.getpid(), number)

    def dropped(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)
        else:  # not from here: it would be dropped, too
            timer = threading.Timer(0.1, send, [arrived or signal.SIGINT])
            timer.daemon = True
            timer.start()

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    # None stands for a handler that was not installed from Python, and could not be restored.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    except Exception as error:
        if arrived:
            raise KeyboardInterrupt from error
        raise
    finally:
        within = False
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_termination_signals() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP from now on, for a process that another one ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
