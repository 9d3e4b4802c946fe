"""Attacks by their text, such as ``pgd:0.03:steps=50``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tutelage.attacks.attack import Attack
from tutelage.attacks.foolbox import PREFIX, FoolboxAttack
from tutelage.attacks.worst import Worst
from tutelage.errors import TutelageError, unknown
from tutelage.parts import import_part, part_names

KIND = "algorithms"


def attack_names() -> list[str]:
    """The names of the attacks of this package."""
    return part_names(KIND)


def find_attack(text: str) -> Attack:
    """The attack of a text: NAME[:RADIUS][:SETTING=VALUE]..., or several joined by + for the worst of them.

    ``pgd:0.03``, ``pgd:0.5:norm=l2:steps=50``, ``square:0.03:queries=5000``, ``den``, ``pgd:0.03+square:0.03``, and any
    attack of foolbox by its class, ``foolbox/L2CarliniWagnerAttack:steps=200``, with the extra ``attacks``.

    Raises:
        TutelageError: there is no such attack, or a setting is invalid.
    """
    texts = re.split(r"\+(?=\s*[A-Za-z])", text)
    attacks = [_one(part.strip()) for part in texts]
    return attacks[0] if len(attacks) == 1 else Worst(attacks)


def find_attacks(texts: Sequence[str]) -> dict[str, Attack]:
    """The attacks of several texts, by text.

    Raises:
        TutelageError: as ``find_attack``.
    """
    return {text: find_attack(text) for text in texts}


def _one(text: str) -> Attack:
    name, *parts = text.split(":")
    settings: dict[str, Any] = {}
    for number, part in enumerate(parts):
        setting, equals, value = part.partition("=")
        if not equals and number == 0:
            setting, value = "radius", part
        elif not equals or not setting:
            raise TutelageError(
                f"an attack is NAME[:RADIUS][:SETTING=VALUE], got {text!r}; for example pgd:0.03:steps=50"
            )
        if setting in settings:
            raise TutelageError(f"the attack {text!r} gives {setting} twice; give it once")
        settings[setting] = value
    if name.startswith(PREFIX):
        return FoolboxAttack.named(name.removeprefix(PREFIX), settings)
    if name not in attack_names():
        raise unknown("attack", name, attack_names(), f"Attacks of foolbox have the prefix {PREFIX}.")
    attack: type[Attack] = import_part(KIND, name).ATTACK
    if "radius" not in settings and attack.model_fields["radius"].is_required():
        raise TutelageError(f"the attack {name} needs a radius, for pixels in [0, 1]; for example {name}:0.03")
    if "radius" in settings and not attack.model_fields["radius"].is_required():
        raise TutelageError(
            f"the attack {name} searches for the nearest adversarial input and has no radius, got {text!r}; "
            f"name it {name}: its curve has the accuracy at every radius"
        )
    return attack(**settings)
