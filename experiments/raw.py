"""What a study measured, as small files to be committed: one a run.

python -m experiments.raw runs/demo docs/results/demo
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from tutelage.studies.results import Results


def keep(results: Results, to: Path) -> None:
    """Write one file a run; a study with a hole is refused."""
    for record in results.runs:
        if record["status"] != "done":
            raise SystemExit(f"{record['folder']} is {record['status']}: {record['error']}")
        folder = results.folder / record["folder"]
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        raw = {
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
        file = to / f"{re.sub('[^a-z]+', '-', record['method'])}-seed-{record['seed']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep what a study measured as one small file a run.")
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("to", type=Path, help="folder for the files")
    given = parser.parse_args()
    keep(Results.read(given.study), given.to)
