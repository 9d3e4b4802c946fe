"""Install the wheel and the sdist of a folder into bare virtual environments, and try them.

python release/install.py dist
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    """Install torch first, in the pinned version, then the file; run the smoke test outside of the repository."""
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for file in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")]):
        with tempfile.TemporaryDirectory() as place:
            venv.create(Path(place, "venv"), with_pip=True)
            python = Path(place, "venv", "Scripts" if os.name == "nt" else "bin", "python")
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints]
            subprocess.run([*pip, "torch"], check=True)
            subprocess.run([*pip, str(file.resolve())], check=True)
            print(f"{file.name}:", flush=True)
            subprocess.run([str(python), str(ROOT / "release" / "smoke.py")], cwd=place, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
