"""Hierarchies of classes: groups of classes, groups of groups, up to one root."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.formats.npz import Archive
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.files import as_path, read_file
from tutelage.parsing import parse_json, parse_yaml
from tutelage.text import value_text

ROOT = "root"
"""The name of the root of a hierarchy that names several groups at the top."""


@dataclass(frozen=True)
class Hierarchy:
    """A directed acyclic graph of nodes with one root, whose leaves are the classes.

    Attributes:
        classes: C; the nodes 0 to C - 1 are the classes.
        parents: the parents of each node, (n,) tuples; only those of the root are empty.

    Raises:
        TutelageError: the graph has a cycle, several roots, or leaves other than the classes.
    """

    classes: int
    parents: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        try:
            order = tuple(TopologicalSorter(dict(enumerate(self.parents))).static_order())
        except CycleError as error:
            raise TutelageError(f"the hierarchy has a cycle of {len(error.args[1]) - 1} nodes; remove it") from None
        roots = sum(not parents for parents in self.parents)
        leaves = set(range(len(self.parents))) - {parent for parents in self.parents for parent in parents}
        if set(order) != set(range(len(self.parents))) or roots != 1 or leaves != set(range(self.classes)):
            raise TutelageError(
                f"a hierarchy has one root, and its leaves are its {self.classes} classes; this one has {roots} roots "
                f"and {len(leaves)} leaves"
            )
        object.__setattr__(self, "_order", order)

    @classmethod
    def flat(cls, classes: int) -> Hierarchy:
        """A root above all classes."""
        return cls(classes, ((classes,),) * classes + ((),))

    @classmethod
    def of(cls, tree: Any, classes: Sequence[str], where: str = "the hierarchy") -> Hierarchy:
        """The hierarchy of nested names.

        Args:
            tree: for each group a mapping or a list of what is in it: names of classes and of groups, or again
                mappings. If there are several groups at the top, a root is added above them. A class or a group may
                occur in several groups; what is in a group is then written once. Numbers count as names.
            classes: the names of the classes, in the order of their numbers.
            where: what messages call it.

        Raises:
            TutelageError: a class is missing, a name is neither a class nor a group, or a class has children.
        """
        if not isinstance(tree, Mapping) or not tree:
            raise TutelageError(f"{where} is {value_text(tree)}; write groups with their classes: animals: [cat, dog]")
        parents: dict[str, list[str]] = {str(name): [] for name in tree}
        for parent, child in _edges(tree, where):
            known = parents.setdefault(child, [])
            if parent not in known:
                known.append(parent)
        groups = list(dict.fromkeys(parent for above in parents.values() for parent in above))
        for name in parents:
            if name not in groups and name not in classes:
                raise unknown("class", name, classes, f"It is in {where}, and nothing is in it.")
        for name in classes:
            if name in groups:
                raise TutelageError(f"the class {name!r} contains others in {where}; give the group another name")
            if name not in parents:
                raise TutelageError(f"the class {name!r} is missing in {where}; put it into one of its groups")
        tops = [name for name, above in parents.items() if not above]
        if len(tops) > 1:
            groups.append(root := ROOT if ROOT not in parents else f"{ROOT} of all")
            parents |= {name: [root] for name in tops} | {root: []}
        numbers = {name: number for number, name in enumerate([*classes, *groups])}
        return cls(len(classes), tuple(tuple(numbers[above] for above in parents[name]) for name in numbers))

    @classmethod
    def read(cls, file: str | Path, classes: Sequence[str]) -> Hierarchy:
        """The hierarchy in a file.

        Args:
            file: ``.yaml``, ``.yml`` or ``.json`` of nested names (see ``of``); or an ``.npz`` of a data set with
                arrays ``train_labels`` and ``train_coarse``, (N,) integers, the class and the group of each sample.
            classes: as in ``of``.

        Raises:
            TutelageError: it cannot be read, or does not fit the classes.
        """
        path = as_path(str(file))
        readers = {".yaml": parse_yaml, ".yml": parse_yaml, ".json": parse_json}
        suffix = path.suffix.lower()
        if suffix not in (*readers, ".npz"):
            raise TutelageError(f"the hierarchy {str(file)!r} is no .yaml, .yml, .json or .npz file; save it as one")
        try:
            tree = _coarse(path, classes) if suffix == ".npz" else readers[suffix](read_file(path).decode())
        except OSError as error:
            raise TutelageError(
                f"cannot read the hierarchy {file}: {error.strerror or one_line(error)}; check the path, which starts "
                f"from {Path.cwd()}"
            ) from error
        except ValueError as error:
            raise TutelageError(f"{file} does not hold nested names: {one_line(error)}") from error
        return cls.of(tree, classes, str(file))

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def order(self) -> tuple[int, ...]:
        """All nodes, each after its parents."""
        nodes: tuple[int, ...] = self._order  # type: ignore[attr-defined]  # set above
        return nodes

    @property
    def edges(self) -> list[int]:
        """Child and parent of each edge in turn, a flat list."""
        return [node for child, parents in enumerate(self.parents) for parent in parents for node in (child, parent)]

    @cached_property
    def below(self) -> Tensor:
        """(n, C) bool: which classes are below each node; a class is below itself."""
        below = torch.eye(len(self), self.classes, dtype=torch.bool)
        for node in reversed(self.order):
            for parent in self.parents[node]:
                below[parent] |= below[node]
        return below

    @cached_property
    def distances(self) -> Tensor:
        """(C, C) int64: the number of edges of the shortest path between two classes, in either direction."""
        neighbours: list[list[int]] = [list(parents) for parents in self.parents]
        for child, parents in enumerate(self.parents):
            for parent in parents:
                neighbours[parent].append(child)
        distances = torch.empty(self.classes, self.classes, dtype=torch.int64)
        for start in range(self.classes):
            steps, queue = {start: 0}, deque([start])
            while queue:
                node = queue.popleft()
                for other in neighbours[node]:
                    if other not in steps:
                        steps[other] = steps[node] + 1
                        queue.append(other)
            distances[start] = torch.tensor([steps[end] for end in range(self.classes)])
        return distances

    def path(self, node: int) -> list[int]:
        """The nodes from the root to this one, through the first parents."""
        path = [node]
        while self.parents[path[-1]]:
            path.append(self.parents[path[-1]][0])
        return path[::-1]


def _edges(tree: Mapping[Any, Any], where: str) -> Iterator[tuple[str, str]]:
    """(parent, child) for all nested names."""
    for parent, content in tree.items():
        for entry in content if isinstance(content, list | tuple) else [] if content is None else [content]:
            if isinstance(entry, list | tuple):
                raise TutelageError(f"{where} has a list in the list of {parent!s:.40}; give the inner one a name")
            children = entry if isinstance(entry, Mapping) else {entry: None}
            yield from ((str(parent), str(child)) for child in children)
            yield from _edges(children, where)


def _coarse(path: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The classes of each group of an ``.npz`` with coarse labels."""
    with path.open("rb") as stream:
        archive = Archive(path, stream, "train_labels, train_coarse")
        if missing := {"train_labels", "train_coarse"} - set(archive.keys):
            raise TutelageError(f"{path} has no {min(missing)}, the class or the group of each sample; add it")
        labels, coarse = (archive.read(key).reshape(-1) for key in ("train_labels", "train_coarse"))
    if len(labels) != len(coarse) or labels.dtype.kind not in "iu" or coarse.dtype.kind not in "iu":
        raise TutelageError(
            f"train_labels and train_coarse of {path} are not one integer for each sample; save them so"
        )
    groups: dict[str, list[str]] = {}
    for label, group in np.unique(np.stack([labels, coarse], 1), axis=0).tolist():
        if 0 <= label < len(classes):
            groups.setdefault(f"group {group}", []).append(classes[label])
    return groups
