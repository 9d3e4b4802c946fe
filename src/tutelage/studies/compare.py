"""Methods beside the plain student, on the same data, teachers and seeds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from tutelage.config import Config
from tutelage.errors import TutelageError
from tutelage.studies.statistics import Interval, mean_interval, paired_difference

TEACHER, PLAIN = "teacher", "plain"

Progress = Callable[[str, int, dict[str, Any]], None]
"""Told of every epoch: what is trained, its seed, the epoch's record."""


@dataclass(frozen=True)
class Row:
    """One method over all seeds. Shares are in [0, 1].

    Attributes:
        method: its name.
        accuracy: on the test part, last epoch.
        gain: paired difference to the plain student; ``None`` for the plain student itself and for the teacher.
        memorised: share of the wrong training labels that the network predicts; ``None`` without wrong labels.
        ece: expected calibration error.
        values: each seed's accuracy, in the order of the seeds.
    """

    method: str
    accuracy: Interval
    gain: Interval | None
    memorised: Interval | None
    ece: Interval
    values: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


Methods = Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]]
"""Names of methods; or, by the name a row is to have, a method and its settings."""


def compare(
    config: Config,
    methods: Methods,
    seeds: Sequence[int],
    out: Path,
    *,
    teacher: str,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Train a teacher a seed, then a plain student and one of each method under it, and tabulate.

    Every run has its own folder below ``out``; asked for again, the finished ones are read and the others go on.

    Args:
        config: what all runs share; the label noise and the batches of a seed are the same for all of them.
        methods: beside ``plain``, which is always there, as it stands.
        seeds: paired over methods.
        out: where the runs are kept.
        teacher: the teacher's network; it is trained on the same (noisy) labels.
        workers: processes; as many as cores unless given. Each gets its share of the cores.
        progress: told of every epoch.

    Raises:
        TutelageError: when a run fails; the others are kept.
    """
    named = methods if isinstance(methods, Mapping) else {name: (name, {}) for name in methods}
    students: dict[str, tuple[str, Mapping[str, Any]]] = {PLAIN: (PLAIN, {})}
    students |= {name: how for name, how in named.items() if name != PLAIN}
    workers = max(1, min(workers or os.cpu_count() or 1, len(seeds) * len(students)))
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        epochs = manager.Queue()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(threads,))
        try:
            results = _run_all(pool, config, students, seeds, out, teacher, epochs, progress)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # each run goes on from its last checkpoint when it is asked for again
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
    return tabulate(results, [TEACHER, *students], seeds)


def _run_all(
    pool: ProcessPoolExecutor,
    config: Config,
    students: Mapping[str, tuple[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    out: Path,
    teacher: str,
    epochs: Any,
    progress: Progress | None,
) -> dict[tuple[str, int], dict[str, Any]]:
    """The teachers first; as each is there, the students of its seed."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], tuple[str, int]] = {}

    def submit(name: str, seed: int) -> None:
        folder = out / f"seed-{seed}"
        changes: dict[str, Any] = {"seed": seed}
        if name == TEACHER:
            changes |= {"student": teacher, "method": PLAIN, "settings": {}}
        else:
            method, settings = students[name]
            changes |= {"method": method, "settings": dict(settings), "teacher": (str(folder / TEACHER),)}
        running[pool.submit(_run, config.but(**changes), folder / name, name, epochs)] = (name, seed)

    for seed in seeds:
        submit(TEACHER, seed)
    while running:
        finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        with suppress(Empty):
            while progress:
                progress(*epochs.get_nowait())
        for future in finished:
            name, seed = running.pop(future)
            try:
                results[name, seed] = future.result()
            except TutelageError as error:
                raise TutelageError(f"{name}, seed {seed}: {error}") from error
            if name == TEACHER:
                for student in students:
                    submit(student, seed)
    return results


def _start(threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others
    torch.set_num_threads(threads)


def _run(config: Config, folder: Path, name: str, epochs: Any) -> dict[str, Any]:
    from tutelage.runs.execute import execute

    return execute(config, folder, report=lambda record: epochs.put((name, config.seed, record))).metrics


def tabulate(
    results: Mapping[tuple[str, int], Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> list[Row]:
    """Rows from the results of single runs, keyed by (name, seed)."""
    accuracy = {name: [float(results[name, seed]["test"]["accuracy"]) for seed in seeds] for name in names}
    rows = []
    for name in names:
        memorised = [results[name, seed]["train"]["memorised"] for seed in seeds]
        rows.append(
            Row(
                method=name,
                accuracy=mean_interval(accuracy[name]),
                gain=None if name in (TEACHER, PLAIN) else paired_difference(accuracy[name], accuracy[PLAIN]),
                memorised=mean_interval(memorised) if None not in memorised else None,
                ece=mean_interval([float(results[name, seed]["test"]["ece"]) for seed in seeds]),
                values=tuple(accuracy[name]),
            )
        )
    return rows
