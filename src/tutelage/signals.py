"""Handling termination signals like Ctrl-C, so that files are either complete or unchanged."""

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
    """In this context SIGTERM and SIGHUP raise ``KeyboardInterrupt``, as SIGINT does; afterwards handlers are restored.

    ``kill``, ``timeout``, schedulers and containers send SIGTERM; a closed terminal sends SIGHUP. Signals that are
    ignored (``nohup``) stay ignored. An error after such a signal becomes a ``KeyboardInterrupt``, since the signal
    probably caused it: it ended a worker process, or the terminal is closed. If Python drops the interrupt because it
    was raised in a finaliser, it is sent again. Outside the main thread, where Python allows no handlers, the context
    has no effect.
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
        else:  # raised here, it would be dropped again
            timer = threading.Timer(0.1, send, [arrived or signal.SIGINT])
            timer.daemon = True
            timer.start()

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    # None: a handler that was not installed from Python and cannot be restored.
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
    """Ignore Ctrl-C, SIGTERM and SIGHUP: for worker processes, which their parent ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
