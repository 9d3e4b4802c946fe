"""Commands whose processes are killed at chosen moments, and the comparison of their output."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

CLOCKS = ("seconds", "latency_ms", "latency_ms_quartiles", "command")


class FailedError(Exception):
    """A case that did not end as it should."""


# --- a process that is killed


@dataclass(frozen=True)
class Moment:
    """When a process is killed, and how.

    Attributes:
        kind: for the table.
        at: ``name``: at a file's taking its name; ``half``: in the middle of writing one; ``line``: in the middle of
            adding a line; ``time``: after so many seconds.
        count: which of these calls, from 1; for ``time`` the seconds.
        number: the signal.
        after: for ``name``, whether the file has its name already.
    """

    kind: str
    at: str
    count: float
    number: int = signal.SIGKILL
    after: bool = False

    def prepare(self) -> None:
        """Change the functions of this process so that it dies at the moment."""
        from tutelage import files

        if self.at == "name":
            os.replace = self._dying(os.replace, lambda *_: None)  # type: ignore[assignment]
        elif self.at == "half":
            os.fsync = _of_files(self._dying(os.fsync, _halve), os.fsync)  # type: ignore[assignment]
        elif self.at == "line":
            append = files.LockedFolder.append

            def half(folder: files.LockedFolder, path: Path, text: str) -> None:
                append(folder, path, text[: len(text) // 2])

            files.LockedFolder.append = self._dying(append, half)  # type: ignore[method-assign]

    def _dying(self, original: Callable[..., Any], last: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != self.count:
                return original(*arguments, **keywords)
            (original if self.after else last)(*arguments, **keywords)
            os.kill(os.getpid(), self.number)
            time.sleep(1)  # what a handler raises is raised here
            return None

        return call


def _of_files(replacement: Callable[[int], None], original: Callable[[int], None]) -> Callable[[int], None]:
    """A changed ``os.fsync`` for files; folders are synced as ever."""
    return lambda descriptor: (replacement if stat.S_ISREG(os.fstat(descriptor).st_mode) else original)(descriptor)


def _halve(descriptor: int) -> None:
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)


class Counting:
    """Counts the calls that a moment can be aimed at, in a process that is not killed."""

    def __init__(self) -> None:
        self.counts = Counter({"name": 0, "half": 0, "line": 0})

    def prepare(self) -> None:
        from tutelage import files

        os.replace = self._counting("name", os.replace)  # type: ignore[assignment]
        os.fsync = _of_files(self._counting("half", os.fsync), os.fsync)  # type: ignore[assignment]
        files.LockedFolder.append = self._counting("line", files.LockedFolder.append)  # type: ignore[method-assign]

    def _counting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.counts[name] += 1
            return original(*arguments, **keywords)

        return call


def start(
    words: Sequence[str], log: Path, prepare: Callable[[], None] = lambda: None, counts: Path | None = None
) -> int:
    """Begin a command in a fork of this process; its process id."""
    pid = os.fork()
    if pid == 0:
        _run(words, log, prepare, counts)
    return pid


def _run(words: Sequence[str], log: Path, prepare: Callable[[], None], counts: Path | None) -> NoReturn:
    code, has_started = 99, False
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made it ignored in the background
        import torch

        torch.rand(random.SystemRandom().randrange(50))  # numbers must not depend on the state of generators
        sys.argv = ["tutelage", *words]
        prepare()
        from tutelage.cli import main

        has_started = True
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        if counts:
            counts.write_text(json.dumps(prepare.__self__.counts))  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not has_started:  # the command has not begun
            code = 130
        else:
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- commands and their output


class Command:
    """A command of the package, its outcome when it is not killed, and how to kill it.

    Args:
        name: for messages.
        words: the command line without the place of its output.
        option: the name of the option for that place.
        output: the file or folder below a case's folder.
        ignored: names of numbers that a kill may change.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        option: str = "--out",
        output: str = "out",
        ignored_fields: Collection[str] = CLOCKS,
    ) -> None:
        self.name, self.words, self.option, self.output, self.ignored_fields = (
            name,
            list(words),
            option,
            output,
            ignored_fields,
        )
        self.reference: Path | None = None
        self.counts: dict[str, int] = {}
        self.seconds = 0.0

    def line(self, folder: Path) -> list[str]:
        """The words of the command line whose output is in a folder."""
        words = [word.replace("HERE", str(folder)) for word in self.words]
        return [*words, self.option, str(folder / self.output)]

    def run_reference(self, folder: Path) -> None:
        """Run it without killing it, once."""
        if self.reference is not None:
            return
        folder.mkdir(parents=True)
        counter, start_time = Counting(), time.monotonic()
        code = end(start(self.line(folder), folder / "log", counter.prepare, folder / "counts.json"))
        self.seconds = time.monotonic() - start_time
        if code != 0:
            raise FailedError(f"{self.name} without a kill: exit code {code}: {_tail(folder / 'log')}")
        self.counts = json.loads((folder / "counts.json").read_text())
        self.reference = folder

    def compare(self, folder: Path) -> None:
        """Compare a case's output with that of the command that was not killed."""
        assert self.reference is not None
        outcome, expected_outcome = (
            _outcome(root / self.output, self.ignored_fields) for root in (folder, self.reference)
        )
        if outcome.keys() != expected_outcome.keys():
            raise FailedError(f"other files: {sorted(outcome.keys() ^ expected_outcome.keys())}")
        differences = [name for name in outcome if outcome[name] != expected_outcome[name]]
        if differences:
            raise FailedError(f"other contents: {differences}")
        temporary_files = [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp")]
        if temporary_files:
            raise FailedError(f"temporary files are left: {temporary_files}")


def _outcome(output: Path, ignored_fields: Collection[str]) -> dict[str, Any]:
    """What must be equal: by name, bytes of files of weights and pages, numbers of the others."""
    files = sorted(path for path in (output.rglob("*") if output.is_dir() else [output]) if path.is_file())
    outcome: dict[str, Any] = {}
    for path in files:
        name = str(path.relative_to(output))
        if path.suffix == ".json":
            outcome[name] = _without(ignored_fields, json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            outcome[name] = [_without(ignored_fields, json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix in (".safetensors", ".onnx"):
            outcome[name] = path.read_bytes()
        elif path.suffix != ".html":  # a page tells of times, too
            outcome[name] = None
    return outcome


def _without(ignored_fields: Collection[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(ignored_fields, inside) for name, inside in value.items() if name not in ignored_fields}
    return [_without(ignored_fields, inside) for inside in value] if isinstance(value, list) else value


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-6:])
