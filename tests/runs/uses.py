"""What a method uses of the library, found by a rehearsal: which pairs and options its conformance tests need."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.runs.pairs import FEW, PAIRS, STUDENTS, TEXTS, Make, zoo_network
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.data.views import NoAugmentation
from tutelage.methods import find, installed
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.studies.rehearsal import Rehearsal
from tutelage.training.fit import FitResult
from tutelage.training.learner import Learner
from tutelage.training.updates import together

CLASSIFY = [name for name in installed() if find(name).task in (None, "classification")]


@dataclass(frozen=True)
class Use:
    """What was recorded of a method.

    Attributes:
        teacher_features: whether it reads features of a teacher.
        student_layers: whether it reads features of its student, looks for layers in it, or changes them.
        seams: the parts of the library it stands on, for instance ``source Frozen``, ``view`` or ``surgery``.
        own_student: whether it trains only networks of a family of its own.
    """

    teacher_features: bool
    student_layers: bool
    seams: frozenset[str]
    own_student: bool = False

    @property
    def pairs(self) -> Sequence[str]:
        """The pairs of networks that can differ for it."""
        if self.own_student:
            return FEW[:1]
        if self.teacher_features:
            return tuple(PAIRS)
        return STUDENTS if self.student_layers else FEW


class Recorder(Rehearsal):
    """A rehearsal that records what the fits are given."""

    def __init__(self, data: Data, student: Any, teachers: Sequence[Tapped], **options: Any) -> None:
        super().__init__(data, student, teachers, **options)
        self.seams: set[str] = set()
        self.teacher_features = self.student_layers = False

    def trace(self, model: Tapped) -> Tapped:
        """See ``Run.trace``."""
        if all(model is not teacher for teacher in self._teachers):
            self.seams.add("layers found by tracing")
            self.student_layers = True
        return super().trace(model)

    def fit(self, *learners: Learner, update: Any = together, **options: Any) -> FitResult:
        """See ``Run.fit``."""
        self.seams |= {f"fit with {name}" for name in options.keys() & {"data", "streams", "until"}}
        if update is not together:
            self.seams.add(f"update {getattr(update, '__name__', type(update).__name__)}")
        for learner in learners:
            student, teacher = {*learner.roles()} - {"logits"}, {*learner.teacher_roles()} - {"logits"}
            self.teacher_features |= bool(teacher)
            self.student_layers |= bool(student)
            self.seams |= {
                name
                for name, is_used in {
                    f"source {type(learner.source).__name__}": learner.source is not None,
                    "features": bool(student or teacher),
                    "view": bool(learner.views()),
                    "sample weight": learner.sample_weight is not None,
                    "part deployed": learner.deployed is not learner.model,
                    "part trained": learner.trainable is not None,
                    "surgery": bool(applied_operations(learner.model.module)),
                }.items()
                if is_used
            }
        return super().fit(*learners, update=update, **options)


@cache
def use_of(method: str) -> Use:
    """What a method uses; everything, where its rehearsal ends early."""
    pixels = torch.arange(36 * 64, dtype=torch.uint8).view(36, 8, 8, 1)
    part = Split.of(pixels, torch.arange(36) % 4)
    data = data_of(method, Data("rehearsed", ("a", "b", "c", "d"), part, part, part))
    make, teacher = networks(method, FEW[0])
    hardware = Hardware(device="cpu", precision="float32", channels_last=False, workers=0)
    run = Recorder(data, make, [teacher()], recipe=Recipe(epochs=2, batch_size=12), hardware=hardware)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            student = find(method)(run, **brief(method))
    except Exception:  # an imitation of a run has no results; the method's own tests show what is wrong
        return Use(True, True, frozenset({*run.seams, f"unknown ({method})"}))
    is_changed = bool(applied_operations(student.module))
    seams = run.seams | ({"surgery"} if is_changed else set())
    has_student = "STUDENT" in _constants(method)
    return Use(run.teacher_features, run.student_layers or is_changed, frozenset(seams), has_student)


def representatives() -> list[str]:
    """A few methods that stand on every seam between them: the one with most seams not yet covered comes next."""
    remaining = set().union(*(use_of(name).seams for name in CLASSIFY))
    methods: list[str] = []
    while remaining:
        best = max(CLASSIFY, key=lambda name: len(use_of(name).seams & remaining))
        remaining -= use_of(best).seams
        methods.append(best)
    return methods


def networks(method: str, pair: str) -> tuple[Make, Make]:
    """The makers of student and teacher: those of the pair, or ``STUDENT`` and ``TEACHER`` if the method needs them."""
    (make, teacher), own = PAIRS[pair], _constants(method)
    return (
        zoo_network(own["STUDENT"], texts=reads_texts(method)) if "STUDENT" in own else make,
        zoo_network(own["TEACHER"], texts=reads_texts(method)) if "TEACHER" in own else teacher,
    )


def data_of(method: str, images: Data) -> Data:
    """The data that a method is tried on: these images, or texts with the same labels if ``DATA`` says so."""
    if not reads_texts(method):
        return images
    parts = {name: texts_of(split) for name, split in images.splits.items()}
    return replace(images, **parts, views=NoAugmentation())  # type: ignore[arg-type]


def texts_of(images: Split) -> Split:
    """Texts of 6 tokens whose labels are those of the images, which two of the tokens tell."""
    labels = images.labels
    tokens = torch.arange(6) % 3 + 5 + torch.zeros(len(labels), 1, dtype=torch.int64)
    tokens[:, 2] = tokens[:, 3] = 1 + labels
    tokens[::2, 4:] = 0
    return Split.of(tokens, labels, modality=TEXTS)


def brief(method: str) -> Mapping[str, Any]:
    """The settings ``BRIEF`` of a method's own test file, with which it trains less often; empty without one."""
    return dict(_constants(method).get("BRIEF", {}))


def own_student(method: str, otherwise: str) -> str:
    """The name of a network that the method can train: ``STUDENT`` of its own test file, if there is one."""
    return str(_constants(method).get("STUDENT", otherwise))


def own_teacher(method: str, otherwise: str) -> str:
    """The name of a network that can teach it: ``TEACHER`` of its own test file, if there is one."""
    return str(_constants(method).get("TEACHER", otherwise))


def reads_texts(method: str) -> bool:
    """Whether the method is for texts: ``DATA`` of its own test file says so."""
    return _constants(method).get("DATA") == "texts"


def _constants(method: str) -> dict[str, Any]:
    """The constants ``BRIEF``, ``STUDENT``, ``TEACHER`` and ``DATA`` of a method's own test file, where it has them."""
    file = Path(__file__).with_name(f"test_{method}.py")
    statements = ast.parse(file.read_text(encoding="utf-8")).body if file.exists() else []
    names = ("BRIEF", "STUDENT", "TEACHER", "DATA")
    return {
        name: ast.literal_eval(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and (name := ast.unparse(statement.targets[0])) in names
    }
