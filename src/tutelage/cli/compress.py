"""The command ``tutelage compress``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.options import PATH_OPTION, Json, TrustAll, config_options
from tutelage.config import Config

if TYPE_CHECKING:
    from rich.console import Console

    from tutelage.compression import Compression
    from tutelage.training.loop import Record

_OTHER = {"data", "student", "method", "settings", "teacher", "pretrained", "init"}
_FIELDS = tuple(name for name in Config.model_fields if name not in _OTHER)


@config_options(_FIELDS, {name: Config.model_fields[name].default for name in _FIELDS})
def compress(
    teacher: Annotated[str, typer.Argument(help="Folder of a finished run, or MODEL@WEIGHTS.")],
    data: Annotated[str, typer.Option(help="Data set, for example folder:PATH or npz:FILE.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Largest share of the cost: flops=0.3, parameters=0.3 or bits=0.1. Repeatable.  [default: flops=0.5]",
            metavar="<target>",
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, comma-separated.  [default: all that fit]")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.", **PATH_OPTION)] = Path("runs") / "compressed",
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Compress a trained network in several ways under one budget: a table and a page with the best compromise."""
    from tutelage.compression import compress as compress_network
    from tutelage.compression import save_compression
    from tutelage.report.console import print_plain, run_progress, stderr_console

    console = stderr_console()
    with run_progress(console, quiet=json_) as progress:
        compression = compress_network(
            teacher,
            data,
            target=target or ["flops=0.5"],
            methods=[name.strip() for name in methods.split(",")] if methods else [],
            out=out,
            report=None if progress is None else _by_run(progress, console),
            trust=trust,
            **fields["fields"],
        )
    files = save_compression(compression, out)
    if json_:
        print(json.dumps({**compression.summary(), "folder": str(out)}, allow_nan=False))
        return
    _print_table(compression)
    for name, reason in compression.failed.items():
        console.print(f"{name}: not possible: {reason}", markup=False, highlight=False)
    for file in files:
        print_plain(file)


def _by_run(progress: Callable[[dict[str, Any]], None], console: Console) -> Callable[[str, Record], None]:
    """Progress of several runs: the name of each before its first epoch, and fits that are numbered on."""
    first_fit: dict[str, int] = {}
    last = -1

    def report(name: str, record: Record) -> None:
        nonlocal last
        if name not in first_fit:
            first_fit[name] = last + 1
            console.print(name, markup=False, highlight=False)
        last = first_fit[name] + record["fit"]
        progress({**record, "fit": last})

    return report


def _print_table(compression: Compression) -> None:
    from rich.table import Table

    from tutelage.compression.compress import PACKED
    from tutelage.compression.page import size_text
    from tutelage.report.console import Terminal, print_plain

    dense, knee, front = compression.dense, compression.knee(), compression.front()
    table = Table(title=f"{compression.network} on {compression.data}, {', '.join(compression.targets)}")
    table.add_column("network", overflow="fold")
    for column in (compression.metric.short_title, "ms", "size", "FLOPs", "param."):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for variant in compression.variants:
        mark = "best" if variant is knee else "front" if any(variant is other for other in front) else ""
        table.add_row(
            variant.name,
            compression.metric.text(variant.score),
            f"{variant.latency:.3g}",
            size_text(variant.size),
            f"{variant.flops / max(dense.flops, 1):.0%}",
            f"{variant.parameters / max(dense.parameters, 1):.0%}",
            mark,
        )
    Terminal().print(table)
    for variant in compression.variants:
        if variant.packed is not None and not variant.name.endswith(" INT8"):
            print_plain(f"{variant.name}: {size_text(variant.packed)} with packed weights ({PACKED})")
    print_plain(f"best compromise between {compression.metric.title} and latency: {knee.name}")
