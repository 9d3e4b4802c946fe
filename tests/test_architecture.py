"""Packages import only from those below them, and there is one training loop."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.parts import import_part, part_names

SRC = Path(__file__).resolve().parent.parent / "src" / "tutelage"

# From the lowest level up. A package may import from those before it.
ROOMS = (
    ["text"],
    ["errors"],
    ["parsing", "trust", "files", "parts", "formats"],
    ["fields"],
    ["recipe"],
    ["config", "ambient", "signals", "cores", "allocator"],
    ["data"],
    ["models"],
    ["terms"],
    ["losses"],
    ["attacks"],
    ["sources"],
    ["evaluation"],
    ["tasks"],
    ["training"],
    ["integrations"],
    ["methods"],
    ["runs"],
    ["studies"],
    ["report"],
    ["api"],
    ["labels"],
    ["compression"],
    ["cli"],
    ["__init__", "__main__"],
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(SRC.rglob("*.py"))
ROOT = SRC.parent.parent


def package_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path, *, module_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if module_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_package_imports_only_from_those_below_it(path: Path) -> None:
    own_level = LEVEL[package_of(path)]
    upwards = [name for name in imports(path) if name.startswith("tutelage.") and LEVEL[name.split(".")[1]] > own_level]
    assert not upwards
    sideways = [
        name
        for name in imports(path)
        if name.startswith("tutelage.")
        and LEVEL[name.split(".")[1]] == own_level
        and name.split(".")[1] != package_of(path)
    ]
    assert not sideways


def test_no_file_has_more_than_350_lines() -> None:
    files = [*FILES, *(path for folder in ("tests", "experiments", "docs") for path in (ROOT / folder).rglob("*.py"))]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: size for path, size in sizes.items() if size > 350} == {}


def test_no_circle_among_modules() -> None:
    modules = {"tutelage." + ".".join(p.relative_to(SRC).with_suffix("").parts): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: {i for i in imports(path, module_level_only=True) if i in modules} for name, path in modules.items()}
    visited: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in visited:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            visited.add(name)

    for name in graph:
        visit(name, ())


def test_there_is_one_training_loop() -> None:
    backward = [p for p in FILES if ".backward(" in p.read_text()]
    assert [str(p.relative_to(SRC)) for p in backward] == ["training/loop.py"]


def test_no_code_tests_a_methods_name() -> None:
    names = {p.stem for p in (SRC / "methods").iterdir() if p.stem.isidentifier() and not p.stem.startswith("_")}
    names -= {"plain"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & names, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "command", ["--help", "distill --help", "train --epochs many", "nonsense", "study nine --seeds 0"]
)
def test_help_and_argument_errors_do_not_wait_for_torch(command: str) -> None:
    code = (
        "import sys; sys.argv = ['tutelage', *sys.argv[1:]]\n"
        "from tutelage.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "False"


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, tutelage; assert 'torch' not in sys.modules; tutelage.SoftTargets; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        ("networks", "FAMILY"),
        ("surgery", "apply"),
        ("fronts", "build"),
        ("operations", "metrics"),
        ("algorithms", "ATTACK"),
    ],
)
def test_every_file_in_a_folder_of_parts_is_found_by_its_name(kind: str, attribute: str) -> None:
    files = [path for path in FILES if path.parent.name == kind and not path.stem.startswith("_")]
    assert sorted(path.stem for path in files) == sorted(part_names(kind))  # so no two have one name
    for path in files:
        module = import_part(kind, path.stem)
        assert Path(str(module.__file__)) == path
        assert hasattr(module, attribute)
