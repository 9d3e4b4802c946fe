"""Check the content and the metadata of the wheel and the sdist in a folder: ``python release/check.py dist``."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEM = f"{PROJECT['name']}-{PROJECT['version']}"


FOLDERS = ("src", "tests", "docs", "experiments", "benchmarks", "release")
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", "constraints.txt")


def files(folder: str) -> set[str]:
    """The files under a folder of the repository, without compiled ones."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def problems_of_wheel(file: Path) -> list[str]:
    """What is missing from a wheel, superfluous or wrong in it."""
    with zipfile.ZipFile(file) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = Parser().parsestr(archive.read(f"{STEM}.dist-info/METADATA").decode())
        scripts = archive.read(f"{STEM}.dist-info/entry_points.txt").decode()
    expected = {name.removeprefix("src/") for name in files("src/tutelage")}
    package = {name for name in names if not name.startswith(f"{STEM}.dist-info/")}
    found = [f"missing: {name}" for name in sorted(expected - package)]
    found += [f"superfluous: {name}" for name in sorted(package - expected)]
    for key in ("name", "version", "requires-python"):
        if metadata[key.title()] != PROJECT[key]:
            found.append(f"metadata: {key} is {metadata[key.title()]!r}, not {PROJECT[key]!r}")
    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    if len(requirements) != len(PROJECT["dependencies"]):
        found.append(f"metadata: {len(requirements)} dependencies, not {len(PROJECT['dependencies'])}")
    if not metadata.get_all("Project-URL") or not metadata.get_all("Classifier"):
        found.append("metadata: no project URLs or no classifiers")
    if (ROOT / "README.md").read_text(encoding="utf-8") != metadata.get_payload():
        found.append("metadata: the description is not README.md")
    if "tutelage = tutelage.cli:main" not in scripts:
        found.append("the command tutelage is missing")
    if f"{STEM}.dist-info/licenses/LICENSE" not in names:
        found.append("the license is missing")
    return found


def problems_of_sdist(file: Path) -> list[str]:
    """What is missing from an sdist or superfluous in it."""
    with tarfile.open(file) as archive:
        names = {member.name.removeprefix(f"{STEM}/") for member in archive.getmembers() if member.isfile()}
    expected = set().union(*map(files, FOLDERS)) | {*TOP, "Makefile", "mkdocs.yml", ".gitignore", "PKG-INFO"}
    found = [f"missing: {name}" for name in sorted(expected - names)]
    return found + [f"superfluous: {name}" for name in sorted(names - expected)]


def main(folder: Path) -> None:
    """Exit with the problems of both files, if there are any."""
    wheel, sdist = folder / f"{STEM}-py3-none-any.whl", folder / f"{STEM}.tar.gz"
    problems = [f"{wheel.name}: {problem}" for problem in problems_of_wheel(wheel)]
    problems += [f"{sdist.name}: {problem}" for problem in problems_of_sdist(sdist)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{wheel.name} and {sdist.name} are complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
