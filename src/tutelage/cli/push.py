"""The command ``tutelage push``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tutelage.cli.options import Json


def push(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub: USER/REPO.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the files into the folder hub of the run, and upload nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Upload a run's student to the Hugging Face hub: weights, model card and the script that loads it.

    Data, cached teacher outputs, checkpoints and absolute paths are not uploaded.
    """
    from tutelage.report.console import print_plain
    from tutelage.runs.hub import push as push_run

    pushed = push_run(run, repo, private=private, dry_run=dry_run)
    if json_:
        print(json.dumps({"address": pushed.address, "files": pushed.files, "dry_run": dry_run}))
        return
    for name, size in pushed.files.items():
        print_plain(f"{size:>12,}  {name}")
    print_plain(f"{'written to' if dry_run else 'uploaded to'} {pushed.address}")
