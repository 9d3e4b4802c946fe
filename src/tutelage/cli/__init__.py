"""The command line. Slow imports, such as torch, happen when a command needs them."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

import typer

from tutelage.allocator import reuse_freed_memory
from tutelage.cli.calibrate import calibrate
from tutelage.cli.compress import compress
from tutelage.cli.evaluate import evaluate
from tutelage.cli.export import export
from tutelage.cli.labels import labels
from tutelage.cli.listings import data, methods, models, tasks
from tutelage.cli.predict import predict
from tutelage.cli.push import push
from tutelage.cli.study import compare, demo, report, study
from tutelage.cli.train import distill, train
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.signals import termination_signals_interrupt
from tutelage.text import message as one_message

app = typer.Typer(
    help="Train neural networks with a teacher (knowledge distillation).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train,
    distill,
    evaluate,
    predict,
    calibrate,
    export,
    compress,
    push,
    labels,
    study,
    report,
    compare,
    demo,
    methods,
    models,
    tasks,
    data,
):
    app.command()(command)

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the click version that typer uses


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0 for success, 1 if runs of a study failed (its report is written), 2 for an error that the user can
    correct, printed as one line, and 130 if stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for ASCII terminals: escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    reuse_freed_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("default", TutelageWarning)
        warnings.showwarning = _show_warning
        try:
            with termination_signals_interrupt():
                code = app(
                    list(_with_values(sys.argv[1:])), standalone_mode=False
                )  # at Ctrl-C, versions of typer raise or return 130
        except TutelageError as error:
            _fail(str(error))
        except UsageError as error:
            _fail(_usage(error))
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
    if code == 130:
        with suppress(OSError):  # after SIGHUP the terminal is closed
            print("stopped; run the same command again to resume", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _with_values(words: list[str]) -> Iterator[str]:
    """The command line with a value after ``--augment``, which earlier versions had as a flag."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        yield f"{word}=true" if word == "--augment" and following.startswith("-") else word


def _usage(error: Any) -> str:
    """The error in a command line, and the command that lists its options."""
    command = error.ctx.command_path if error.ctx is not None else "tutelage"
    return f"{error.format_message().rstrip('.')}; {command} --help lists its options"


def _fail(text: str) -> NoReturn:
    print(f"error: {one_message(text)}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    if issubclass(category, TutelageWarning):
        print(f"warning: {one_message(str(message))}", file=sys.stderr)
