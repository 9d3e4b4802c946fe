"""MkDocs hooks: folders in the navigation, generated pages, pages from files outside docs/, and their links."""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tutelage.methods import find, installed

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

# Files of the repository root that are pages of the site.
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

MEMBERS = re.compile(r"^<!-- (functions|classes) of ([\w.]+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each pattern in the navigation by the pages that match it and have no entry of their own."""
    config.nav = _expand(config.nav, _named(config.nav))
    return config


def _named(entry: Any) -> set[str]:
    if isinstance(entry, str):
        return {entry}
    values = entry.values() if isinstance(entry, dict) else entry
    return set().union(*map(_named, values))


def _expand(entry: Any, named: set[str]) -> Any:
    if isinstance(entry, dict):
        return {title: _expand(value, named) for title, value in entry.items()}
    if not isinstance(entry, list):
        return entry
    pages: list[Any] = []
    for item in entry:
        if isinstance(item, str) and "*" in item:
            matches = sorted(file.relative_to(DOCS).as_posix() for file in DOCS.glob(item))
            pages += [page for page in matches if fnmatch(page, item) and page not in named]
        else:
            pages.append(_expand(item, named))
    return pages


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are files of the repository root, and the lists of methods and results."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in ROOT_PAGES.items()}
    pages |= {"methods/index.md": _methods(), "results/index.md": _results()}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def _methods() -> str:
    """A table of all methods, by family."""
    methods = sorted(map(find, installed()), key=lambda method: (method.family, method.name))
    rows = [
        f"| [`{method.name}`]({method.name}.md) | {method.family} | {method.summary} | {method.paper} |"
        for method in methods
    ]
    return "\n".join(
        [
            "# Methods",
            "",
            "Each page has the equation, the parameters and the deviations from the paper. "
            "[Loss weights](weights.md) explains the default weights.",
            "",
            "| method | family | what it does | paper |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _results() -> str:
    """A list of the pages of results."""
    titles = {
        page.name: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for page in sorted((DOCS / "results").glob("*.md"))
    }
    return "\n".join(
        [
            "# Results",
            "",
            "Measured on CPUs with small networks and data; each page names its commands and its raw results.",
            "",
            *(f"- [{title}]({name})" for name, title in titles.items()),
            "",
        ]
    )


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """List the members of modules, and adapt links to files to the site: of a file outside of it the text remains."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    uri = page.file.src_uri
    folder = ROOT if uri in sources else (DOCS / uri).parent

    def relink(link: re.Match[str]) -> str:
        mark, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if ":" in target or not (folder / target).exists():
            return link[0]
        path = (folder / target).resolve()
        relative = path.relative_to(ROOT).as_posix()
        if relative in ROOT_PAGES:
            site_path = ROOT_PAGES[relative]
        elif path.is_relative_to(DOCS) and path.is_dir() and (path / "index.md").exists():
            site_path = (path / "index.md").relative_to(DOCS).as_posix()
        elif path.is_relative_to(DOCS) and path.is_file() and path.suffix != ".py":
            site_path = path.relative_to(DOCS).as_posix()
        else:
            return text
        return f"{mark}[{text}]({posixpath.relpath(site_path, posixpath.dirname(uri) or '.')}{anchor})"

    return MEMBERS.sub(lambda match: _members(match[1], match[2]), LINK.sub(relink, markdown))


def _members(kind: str, module: str) -> str:
    """The public functions or classes of a module: a list, and the reference of each."""
    of_kind = inspect.isclass if kind == "classes" else inspect.isfunction
    package = importlib.import_module(module)
    names = [name for name in package.__all__ if of_kind(getattr(package, name))]
    first_lines = {name: (inspect.getdoc(getattr(package, name)) or "").partition("\n")[0] for name in names}
    summary = [f"- [`{name}`][{module}.{name}]: {line}" for name, line in first_lines.items()]
    return "\n".join([*summary, "", *(f"::: {module}.{name}\n" for name in names)])
