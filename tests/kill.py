"""Kills runs of every method at random and at chosen moments, resumes them, and compares every byte.

``python -m tests.kill --minutes 10 [--seed N] [--out FILE]`` prints what it does and a table of counts by kind;
``--out`` writes the table to a file, too. A failure prints the command that repeats its case, and ends the campaign
with exit code 1. Not part of ``make test``; ``tests/test_kill_campaign.py`` runs a few of its cases.

A case is a command, killed once or twice, then given again until it ends. It must end with the student's bytes, the
numbers and the epochs of the same command that was never killed, and leave no temporary file. A killed process is a
fork of this one: it has the libraries loaded, and nothing in the package knows that it is going to be killed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.killing import CLOCKS, Command, FailedError, Moment, _tail, end, start

SHORT = "--data digits --per-class 12 --epochs 3 --batch-size 32 --device cpu --precision float32".split()  # noqa: SIM905
STUDENT, TEACHER = "resnet8x0.25", "resnet8x0.5"

# What a method needs beside a teacher and a student.
NEEDS: dict[str, list[str]] = {
    "mslg": ["--noise", "0.4+trusted:4"],
    "mean_teacher_lc": ["--noise", "missing:0.5"],
    "i2gan": ["--noise", "missing:0.5", "--set", "generator=mlp-ganx0.1"],
    "pdiff": ["--noise", "0.4"],
    "planting": ["--set", "planting_epochs=1", "--set", "rounds=2"],
    "dmnn": ["--student", "dmnn11x0.25"],
    "spikes": ["--student", "snn8-4"],
    "akdg": ["--student", "mlp-ganx0.1", "--set", "critic_width=0.1", "--set", "critic_steps=2"],
}
STUDY = (  # noqa: SIM905
    "study nine --data digits --per-class 12 --students resnet8x0.25 --teachers resnet8x0.5 --methods hinton,dml "
    "--seeds 1 --workers 2 --set epochs=3 --set batch_size=32 --set device=cpu"
).split()

# What a fork of this process should not have to import itself.
IMPORTED = (
    *("tutelage.runs.execute", "tutelage.report.console", "tutelage.report.page", "tutelage.studies.runner"),
    *("sklearn.datasets", "torch._dynamo", "torch.onnx"),
)


def moment_of(command: Command, rng: random.Random) -> Moment:
    """Some moment of a command's life."""
    number = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
    names, after = command.counts["name"], rng.random() < 0.5
    choices = [
        Moment("as a file takes its name", "name", rng.randint(1, names), number, after),
        Moment("in the middle of a file", "half", rng.randint(1, command.counts["half"]), number),
        Moment("any time", "time", rng.uniform(0, command.seconds), number),
    ]
    if command.counts["line"]:  # it trains; first come three files of inputs, the list of epochs and a checkpoint
        choices += [
            Moment("before the first checkpoint", "name", rng.randint(1, 5), number),
            Moment("between the weights and the result", "name", names, number),
            Moment("in the middle of a line", "line", rng.randint(1, command.counts["line"]), number),
        ]
    return rng.choice(choices)


def kill_and_resume(command: Command, moments: Sequence[Moment], folder: Path) -> bool:
    """Kill a command at each moment in turn, run it to its end and compare; false where no kill struck."""
    folder.mkdir(parents=True)
    was_killed = False
    for moment in moments:
        pid = start(command.line(folder), folder / "log", moment.prepare)
        if moment.at == "time":
            time.sleep(moment.count)
            os.kill(pid, moment.number)  # it is not waited for yet, so that the id is still its own
        code = end(pid)
        if code not in (0, 130, -moment.number):
            raise FailedError(f"exit code {code} of the killed one: {_tail(folder / 'log')}")
        if "Traceback" in (folder / "log").read_text(errors="replace"):
            raise FailedError(f"a traceback of the killed one: {_tail(folder / 'log')}")
        was_killed |= code != 0
    code = end(start(command.line(folder), folder / "log"))
    if code != 0:
        raise FailedError(f"exit code {code} of the resumed one: {_tail(folder / 'log')}")
    command.compare(folder)
    return was_killed


def kill_study(command: Command, victim: str, rng: random.Random, folder: Path) -> bool:
    """As ``kill_and_resume`` for a study, of which a worker or the parent is killed."""
    folder.mkdir(parents=True)
    pid = start(command.line(folder), folder / "log")
    time.sleep(rng.uniform(0, command.seconds))
    workers = _children(pid)
    parent = victim == "the study's parent" or not workers
    os.kill(pid if parent else rng.choice(workers), signal.SIGKILL)
    first = end(pid)
    if first not in (0, -signal.SIGKILL):
        raise FailedError(f"exit code {first} of the killed one: {_tail(folder / 'log')}")
    deadline = time.monotonic() + 60
    while any(_alive(worker) for worker in workers):
        if time.monotonic() > deadline:
            raise FailedError("workers outlive the study")
        time.sleep(0.1)
    code = end(start(command.line(folder), folder / "log"))
    if code != 0:
        raise FailedError(f"exit code {code} of the resumed one: {_tail(folder / 'log')}")
    command.compare(folder)
    return not parent or first != 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def write_texts(folder: Path) -> Path:
    """A folder of 60 texts of five classes with a tokenizer."""
    from tutelage.data.formats.text import make_tokenizer

    folder.mkdir(parents=True)
    words = ("one", "two", "three", "four", "five")
    lines = "".join(f"{word}\ta {word} of {other}\n" for word in words for other in words * 3)
    for name in ("train", "test"):
        (folder / f"{name}.tsv").write_text(lines)
    make_tokenizer(folder, size=60)
    return folder


def commands(root: Path) -> list[Command]:
    """One command a method, and the commands that write other files."""
    from tutelage.methods import find, installed

    teacher, spiking, generator = root / "teacher", root / "spiking", root / "generator"
    reader = root / "reader"
    of_texts = ["--data", f"text:{write_texts(root / 'texts')}"]  # after the other data, so that it counts
    for folder, words in (
        (teacher, ["train", "--model", TEACHER, *SHORT]),
        (spiking, ["train", "--model", "snn12-4", *SHORT]),
        (reader, ["train", "--model", "textcnn-2-8", *SHORT, *of_texts]),
        (generator, ["train", "--model", "dcganx0.2", "--method", "akdg", "--set", "weight=0", *SHORT]),
    ):
        if code := end(start([*words, "--out", str(folder)], root / "log")):
            raise FailedError(f"{words}: exit code {code}: {_tail(root / 'log')}")
    result = []
    own_teachers = {"spikes": spiking, "nas_kd": reader}
    for name in installed():
        if find(name).task in ("barcode", "segmentation"):  # whose data SHORT does not name
            continue
        own_teacher = generator if find(name).task == "generation" else own_teachers.get(name, teacher)
        words = ["distill", "--method", name, "--student", STUDENT, "--teacher", str(own_teacher), *SHORT]
        if name == "nas_kd":
            words = [*words, "--student", "cells-2-4", *of_texts]
        result.append(Command(name, [*words, *NEEDS.get(name, [])]))
    trained_model = ["distill", "--method", "at", "--student", STUDENT, "--teacher", str(teacher), *SHORT]
    # The teacher runs less in an epoch that is done again, since its outputs are cached.
    compared_fields = (*CLOCKS, "forward_passes")
    result.append(
        Command(
            "at, with cached teacher outputs",
            [*trained_model, "--teacher-cache", "HERE/cache"],
            ignored_fields=compared_fields,
        )
    )
    result.append(Command("export", ["export", str(teacher), "--data", "digits"], "--onnx", "student.onnx"))
    return result


class Campaign:
    """Cases, one after another.

    Args:
        place: a folder for all that is written.
        seed: of the choice of moments.
        studies: whether studies are killed, too; they take longer.
    """

    def __init__(self, folder: Path, seed: int, *, studies: bool = True) -> None:
        self.place, self.seed = folder, seed
        self.commands = commands(folder)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.victims: tuple[str, ...] = ()
        if studies:
            self.study, self.victims = Command("study", STUDY), ("the study's parent", "a study's worker")
            self.study.run_reference(folder / "whole-study")
            self.commands.append(
                Command("report", ["report", str(folder / "whole-study" / "out")], "--out", "page.html")
            )

    def case(self, number: int) -> str:
        """Do a case, which its number and the seed determine; a line that describes it."""
        rng = random.Random(f"{self.seed}-{number}")
        folder = self.place / f"case-{number}"
        # Each in turn, so that a short campaign has all of them.
        index = number % (len(self.commands) + len(self.victims))
        if index < len(self.commands):
            command = self.commands[index]
            command.run_reference(self.place / f"whole-{index}")
            moments = [moment_of(command, rng) for _ in range(rng.choice([1, 1, 2]))]
            was_killed = kill_and_resume(command, moments, folder)
            kinds = [moment.kind for moment in moments]
        else:
            command, kinds = self.study, [self.victims[index - len(self.commands)]]
            was_killed = kill_study(command, kinds[0], rng, folder)
        kind = kinds[0] if len(kinds) == 1 else "twice"
        self.counts[kind, "killed" if was_killed else "over before"] += 1
        shutil.rmtree(folder)
        return f"{command.name}: {', then '.join(kinds)}{'' if was_killed else ' (over before)'}"

    def table(self) -> str:
        """Counts by kind, as Markdown."""
        kinds = sorted({kind for kind, _ in self.counts})
        rows = [f"| {kind} | {self.counts[kind, 'killed']} | {self.counts[kind, 'over before']} |" for kind in kinds]
        killed_count = sum(count for (_, outcome), count in self.counts.items() if outcome == "killed")
        total = f"| all | {killed_count} | {sum(self.counts.values()) - killed_count} |"
        return "\n".join(
            ["| moment | killed and resumed | over before the kill |", "| --- | --- | --- |", *rows, total]
        )


def import_all() -> None:
    """Import what forks of this process use, once."""
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)  # once, and not in every fork


def main() -> int:
    """The campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="do this one alone")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    import_all()
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        number, has_failed = options.case or 0, False
        while time.monotonic() < deadline and not has_failed:
            try:
                print(f"{number}: {campaign.case(number)}", flush=True)
            except FailedError as error:
                has_failed = True
                print(f"FAILED: {error}\nrepeat it: python -m tests.kill --seed {options.seed} --case {number}")
            if options.case is not None:
                break
            number += 1
        print(campaign.table())
        if options.out:
            options.out.write_text(campaign.table() + "\n")
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
