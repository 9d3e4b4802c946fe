"""A small reader of XML that expands nothing: a document type, and so every entity of its own, is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

DEEPEST = 20


@dataclass
class Element:
    """An element with its text and the elements in it."""

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, name: str) -> Element | None:
        """The first child of this name."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[Element]:
        """All children of this name."""
        return [child for child in self.children if child.name == name]

    def value(self, name: str) -> str:
        """The text of the first child of this name, without space around it; empty if there is none."""
        child = self.find(name)
        return "" if child is None else child.text.strip()


def parse(content: bytes) -> Element:
    """The root of a document.

    Raises:
        ValueError: it is no XML, has a document type, or is nested too deeply.
    """
    top = Element("")
    open_elements = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_elements) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        element = Element(name)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(name: str) -> None:
        open_elements.pop()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type (<!DOCTYPE), which could expand to anything; remove it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML ({error})") from error
    return top.children[0]
