"""Workers run functions: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.spawn import get_preparation_data
from typing import Any, Protocol

from tutelage.allocator import reuse_freed_memory
from tutelage.cores import cores
from tutelage.errors import TutelageError, one_line
from tutelage.signals import ignore_termination_signals


class Workers(Protocol):
    """Runs calls of functions in parallel. If a process dies, only the call that it runs fails."""

    @property
    def count(self) -> int:
        """The number of calls that can run at the same time."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function as soon as a worker is free; the future raises an error if its process died."""
        ...

    def stop(self) -> None:
        """End all processes immediately."""
        ...


def refuse_unguarded() -> None:
    """End a worker whose main program starts a study while the worker imports it; the first study reports why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself checks
        raise SystemExit(1)


def _main_program() -> str | None:
    """The file of the main program, which every worker imports; ``None`` if they import none (``python -c``).

    Raises:
        TutelageError: the main program was read from standard input, so that it cannot be imported.
    """
    path: str | None = get_preparation_data("").get("init_main_from_path")
    if path is not None and not os.path.isfile(path):
        raise TutelageError(
            f"workers import the main program, and {os.path.basename(path)} is no file: save the program as a file and "
            'call run_study below if __name__ == "__main__":'
        )
    return path


class InlineWorkers:
    """Runs each call immediately in this process, also one that cannot be pickled."""

    count = 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See ``Workers``."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def stop(self) -> None:
        """Nothing to stop."""


class LocalWorkers:
    """Processes of this machine, each with an equal share of the cores.

    Each process has its own pipe and shares no lock with the others, so that it can be killed at any moment.

    Args:
        count: number of processes; one per core unless given.

    Raises:
        TutelageError: the main program is not a file, so that processes cannot import it.
    """

    def __init__(self, count: int | None = None) -> None:
        self._program = _main_program()
        self.count = count or cores()
        self._share = max(1, cores() // self.count)
        self._threads = ThreadPoolExecutor(self.count)  # one thread waits for each process
        self._own = threading.local()
        self._all: list[_Process] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See ``Workers``."""
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or not process.alive:
            self._own.process = process = _Process(self._share)
            self._all.append(process)
            process.wait_until_ready(self._program)
        return process.call(function, arguments)

    def stop(self) -> None:
        """See ``Workers``."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()
        self._threads.shutdown()


class _Process:
    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, threads))
        self._process.start()
        child_end.close()  # so that the pipe closes when the process ends

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait_until_ready(self, program: str | None) -> None:
        """Wait until the process has imported the main program.

        Raises:
            TutelageError: it ended by itself during the import.
            ChildProcessError: it was killed.
        """
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            if program is None or code < 0:
                raise ChildProcessError(f"exit code {code}") from None
            raise TutelageError(
                f"a worker ended with exit code {code} while it imported the main program {program}: call run_study "
                'below if __name__ == "__main__":'
            ) from None

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            self._pipe.send((function, arguments))
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ChildProcessError(f"exit code {self._process.exitcode}") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, threads: int) -> None:
    """Run calls from the pipe, one after another; the main function of a process."""
    import torch

    reuse_freed_memory()
    ignore_termination_signals()  # they may reach every process; the study ends its workers
    torch.set_num_threads(threads)
    if study := multiprocessing.parent_process():
        threading.Thread(target=_exit_with, args=(study,), daemon=True).start()
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            pipe.send(function(*arguments))


def _exit_with(study: BaseProcess) -> None:
    """Exit when the parent process ends: a killed study cannot stop its workers, which would disturb the next."""
    study.join()
    os._exit(1)


class RayWorkers:
    """Processes of a Ray cluster, as many as its cores (or GPUs, if it has any) allow.

    All machines must have the package installed, and the study's folder and the data at the same paths.

    Args:
        address: of the cluster; ``auto`` for the one that this machine belongs to, ``local`` to start one here.
        threads: cores for each run.

    Raises:
        TutelageError: ray is not installed, or there is no cluster at this address.
    """

    def __init__(self, address: str, threads: int = 1) -> None:
        try:
            import ray
        except ImportError:
            raise TutelageError("--ray needs ray: pip install 'tutelage[ray]'") from None
        self._ray: Any = ray
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise TutelageError(
                f"no Ray cluster at {address!r} ({one_line(error)}); ray start --head starts one; or use --ray local"
            ) from error
        gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        self._resource, self._per_run = ("GPU", 1) if gpus else ("CPU", threads)
        # The study retries a run that died, so ray must not.
        self._call = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_call_like_driver)
        self._threads = threads
        self._calls: list[Any] = []

    @property
    def count(self) -> int:
        """The number that fits the cluster now; machines may join and leave it."""
        return max(1, int(self._ray.cluster_resources().get(self._resource, 0) // self._per_run))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """See ``Workers``."""
        call = self._call.remote(os.getcwd(), sys.path, self._threads, function, arguments)
        self._calls.append(call)
        future: Future[Any] = call.future()
        return future

    def stop(self) -> None:
        """See ``Workers``."""
        for call in self._calls:
            self._ray.cancel(call, force=True)
        self._ray.shutdown()


def _call_like_driver(folder: str, path: list[str], threads: int, function: Callable[..., Any], arguments: Any) -> Any:
    """Call a function with the driver's working directory and import path, on which names may depend."""
    import torch

    reuse_freed_memory()
    os.chdir(folder)
    sys.path[:] = path
    torch.set_num_threads(threads)
    return function(*arguments)
