"""Attacks by their text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tutelage.attacks import DEN, FGSM, PGD, Square, Worst, find_attack, find_attacks

Refused = Callable[..., AbstractContextManager[None]]


def test_texts() -> None:
    assert find_attack("pgd:0.03") == PGD(radius=0.03)
    assert find_attack("pgd:0.5:norm=l2:steps=7:loss=margin") == PGD(radius=0.5, norm="l2", steps=7, loss="margin")
    assert find_attack("pgd:steps=3:radius=0.1") == PGD(radius=0.1, steps=3)
    assert find_attack("fgsm:1e-2") == FGSM(radius=0.01)
    assert find_attack("den") == DEN()
    assert find_attack("den:l1=0") == DEN(l1=0)
    assert find_attack("pgd:0.1 + square:0.1") == Worst([PGD(radius=0.1), Square(radius=0.1)])
    assert find_attacks(["den", "pgd:0.1"]) == {"den": DEN(), "pgd:0.1": PGD(radius=0.1)}


@pytest.mark.parametrize("text", ["pgd:0.03", "pgd:0.5:norm=l2:steps=7:loss=margin", "den:l1=0", "pgd:0.1+square:0.1"])
def test_texts_of_attacks_are_read_back(text: str) -> None:
    assert str(find_attack(text)) == text
    assert find_attack(str(find_attack(text))) == find_attack(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg:0.1", "did you mean 'pgd'"),
        ("", "unknown attack"),
        ("pgd", "needs a radius, for pixels in [0, 1]; for example pgd:0.03"),
        ("pgd:far", "radius"),
        ("pgd:8", "divide it: 0.0314"),
        ("pgd:-1", "radius"),
        ("pgd:0.1:stepz=3", "stepz"),
        ("pgd:0.1:steps=0", "steps"),
        ("pgd:0.1:steps=3:steps=4", "steps twice"),
        ("pgd:0.1:0.2", "NAME[:RADIUS]"),
        ("pgd:0.1:=2", "NAME[:RADIUS]"),
        ("pgd:0.1:loss=hinge", "loss"),
        ("pgd:0.1:norm=l0", "norm"),
        ("square:0.1:norm=l2", "Square supports the norm linf, got l2"),
        ("den:0.03", "has no radius"),
        ("pgd:0.1+", "radius"),
    ],
)
def test_invalid_texts_are_refused(text: str, message: str, refused: Refused) -> None:
    with refused(message):
        find_attack(text)
