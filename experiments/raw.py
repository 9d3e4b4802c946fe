"""Write the raw results of a study for the repository: one JSONL file, one line per run.

``python -m experiments.raw runs/demo docs/results/demo.jsonl`` writes the runs of a study.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tutelage.studies.functions import read_lines
from tutelage.studies.results import Results


def write_study(results: Results, file: Path) -> None:
    """Write the runs of a study, replacing lines with the same row and seed; exits if a run failed."""
    lines = {(line["row"], line["seed"]): line for line in read_lines(file)}
    for record in results.runs:
        if record["status"] != "done":
            raise SystemExit(f"{record['folder']} is {record['status']}: {record['error']}")
        folder = results.folder / record["folder"]
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        lines[record["method"], record["seed"]] = {
            "row": record["method"],
            "command": result["command"],
            "method": result["method"],
            "settings": result["settings"],
            "seed": result["seed"],
            "test": {key: result["test"][key] for key in ("accuracy", "worst_class_accuracy", "nll", "brier", "ece")},
            "train": result["train"],
            "parameters": result["cost"]["parameters"],
            "training_seconds": result["seconds"],
            "versions": {name: versions[name] for name in ("python", "torch", "tutelage")},
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    ordered = [lines[key] for key in sorted(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in ordered), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the results of a study as one JSONL file.")
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("file", type=Path, help="JSONL file to write")
    arguments = parser.parse_args()
    write_study(Results.read(arguments.study), arguments.file)
