"""Terminal output of runs and studies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tutelage.text import printable

if TYPE_CHECKING:
    from tutelage.runs import Result
    from tutelage.studies.jobs import Status, Watch


class Terminal(Console):
    """A console that prints text literally: names are not markup, and control characters are escaped."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape text before rich measures it, so that columns are wide enough."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape control characters in text; cursor movements of rich are unchanged."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def print_plain(text: object) -> None:
    """Print plain text to stdout, with control characters escaped."""
    print(printable(str(text)))


def stderr_console() -> Console:
    """A console on stderr, for progress: stdout may be read by a program."""
    return Terminal(stderr=True, soft_wrap=True)


@contextmanager
def run_progress(console: Console, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Show a progress bar for each fit on a terminal, and occasional lines elsewhere."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[int, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def report(record: dict[str, Any]) -> None:
            number, epoch, epochs = record["fit"], record["epoch"], record["epochs"]
            note = epoch_text(record)
            if number not in tasks:
                tasks[number] = bars.add_task(f"fit {number + 1}", total=epochs, note="")
            bars.update(tasks[number], completed=epoch, note=note)
            if not console.is_terminal and (epoch == epochs or epoch % max(1, epochs // 10) == 0):
                console.print(f"fit {number + 1}  epoch {epoch}/{epochs}  {note}", highlight=False)

        yield report


@contextmanager
def counting_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many of many inputs are done: a bar on a terminal, occasional lines elsewhere; nothing for a few."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: list[Any] = []
        tenths = 0

        def report(done: int, total: int) -> None:
            nonlocal tenths
            if done == total and not tasks and not tenths:  # at once
                return
            if not tasks:
                tasks.append(bars.add_task("", total=total))
            bars.update(tasks[0], completed=done)
            if not console.is_terminal and 10 * done // total > tenths:
                tenths = 10 * done // total
                console.print(f"{done} of {total}", highlight=False)

        yield report


@contextmanager
def study_progress(console: Console, *, quiet: bool) -> Iterator[Watch | None]:
    """Show running and finished runs and the remaining time: bars on a terminal, occasional lines elsewhere."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bars: dict[str, Any] = {}
    lines: list[str] = []
    remaining = _RemainingTime()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def watch(status: Status) -> None:
            failed = f", {status.failed} failed" if status.failed else ""
            count = f"{status.done} of {status.runs} {status.unit} done{failed}"
            current = {"": (f"all {status.unit}", status.share, count + remaining.text(status))}
            current |= {run.name: (f"  {run.label}", run.share, "") for run in status.running}
            for name in bars.keys() - current.keys():
                progress.remove_task(bars.pop(name))
            for name, (label, share, note) in current.items():
                if name not in bars:
                    bars[name] = progress.add_task("", total=1.0, note="")
                progress.update(bars[name], description=label, completed=share, note=note)
            if not console.is_terminal and lines[-1:] != [count]:
                lines.append(count)
                console.print(count, highlight=False)

        yield watch


class _RemainingTime:
    """An estimate of the remaining time, from all progress since the first status of its kind."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, float]] = {}

    def text(self, status: Status) -> str:
        """Return the remaining time as text; empty before any progress."""
        start, share = self._first.setdefault(status.unit, (time.monotonic(), status.share))
        progress = status.share - share
        if progress <= 0 or status.share >= 1:
            return ""
        seconds = round((time.monotonic() - start) * (1 - status.share) / progress)
        return f", {timedelta(seconds=seconds)} left"


def epoch_text(record: dict[str, Any]) -> str:
    """Format the first learner's numbers of an epoch on one line."""
    learner = next(iter(record["learners"].values()))
    return "  ".join(f"{name} {value:.4g}" for name, value in learner.items())


def print_result(result: Result) -> None:
    """Print the measurements of a run as a table."""
    from tutelage.data import Pixels  # these import torch
    from tutelage.runs.models import DEFAULT_TASK
    from tutelage.tasks import find_task

    metrics = result.metrics
    table = Table(title=f"{metrics['method']} on {metrics['data']['name']}, seed {metrics['seed']}", show_header=False)
    for row in find_task(metrics.get("task", DEFAULT_TASK)).describe(metrics):
        table.add_row(*row)
    cost = metrics["cost"]
    sample = metrics["data"].get("sample", Pixels.sample)
    table.add_row(f"parameters, FLOPs per {sample}", f"{cost['parameters']:,}, {cost['flops']:,}")
    table.add_row("latency, training time", f"{cost['latency_ms']:.2f} ms, {metrics['seconds']:.1f} s")
    console = Terminal()
    console.print(table)
    console.print(f"{result.folder}", highlight=False, soft_wrap=True)


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under column headings."""
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Terminal().print(table)
