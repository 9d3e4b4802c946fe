"""The front, the knee and the targets of compressed networks."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import pytest

from tutelage.compression.candidates import Target, candidates
from tutelage.compression.page import page, size_text
from tutelage.compression.variants import Compression, Variant
from tutelage.tasks import Metric

ACCURACY = Metric("test accuracy", "higher", percent=True)


def variant(name: str, score: float, latency: float, size: int = 1000) -> Variant:
    return Variant(name, score, 10 * size, size, size, latency, f"{name}/student.onnx")


def of(*variants: Variant, metric: Metric = ACCURACY) -> Compression:
    return Compression("resnet8", "digits", 10, metric, ("flops=0.5",), variants)


def test_front_holds_what_none_beats() -> None:
    generator = random.Random(0)
    for _ in range(50):
        variants = [variant(str(n), generator.randint(0, 6) / 6, generator.randint(1, 6)) for n in range(8)]
        chosen = of(*variants).front()
        pairs = [(v.latency, v.score) for v in chosen]
        assert pairs == sorted(set(pairs))
        for one in variants:
            beaten = any(
                other.latency <= one.latency
                and other.score >= one.score
                and (other.latency, other.score) != (one.latency, one.score)
                for other in variants
            )
            assert ((one.latency, one.score) in pairs) is not beaten


def test_knee_is_the_point_farthest_above_the_line() -> None:
    points = [variant("a", 0.5, 1.0), variant("b", 0.8, 2.0), variant("c", 0.85, 4.0), variant("d", 0.9, 16.0)]
    assert of(*points).knee().name == "b"  # above the line by .75 - .25; c by .875 - .5
    assert all(of(*order).knee().name == "b" for order in itertools.permutations(points))
    assert of(points[0], points[3]).knee().name == "d"
    assert of(points[1]).knee().name == "b"


def test_knee_where_lower_is_better_and_without_scores() -> None:
    error = Metric("test error", "lower")
    points = [variant("a", 5.0, 1.0), variant("b", 2.0, 2.0), variant("c", 1.0, 16.0), variant("bad", 9.0, 20.0)]
    assert of(*points, metric=error).knee().name == "b"
    assert [v.name for v in of(*points, metric=error).front()] == ["a", "b", "c"]
    unknown = of(variant("teacher", math.nan, 2.0), variant("small", math.nan, 1.0))
    assert unknown.knee().name == "teacher"
    assert json.dumps(unknown.summary(), allow_nan=False)
    assert "none" in page(unknown)


@pytest.mark.parametrize("text", ["flops", "flops=2", "flops=0", "speed=0.5", "flops=x", "flops=nan", ""])
def test_invalid_targets_are_one_line(text: str, refused: Any) -> None:
    with refused("a target is flops=SHARE", "flops=0.3"):
        Target.parse(text)


def test_candidates_of_targets() -> None:
    assert Target.parse(" flops = 0.3 ") == Target("flops", 0.3)
    ways = candidates([Target("flops", 0.5), Target("flops", 0.25)], ["uniform_width"])
    assert [way.name for way in ways] == [
        "uniform_width-0.5",
        "uniform_width-scratch-0.5",
        "uniform_width-0.25",
        "uniform_width-scratch-0.25",
    ]
    assert ways[2].settings == {"resource": "flops", "target": 0.25, "start": "teacher"}


def test_unknown_methods_and_resources_are_refused(refused: Any) -> None:
    with refused("unknown method that compresses 'hinton'", "uniform_width"):
        candidates([Target("flops", 0.5)], ["hinton"])
    with refused("uniform_width cannot aim at bits=0.1"):
        candidates([Target("bits", 0.1)], ["uniform_width"])


def test_page_shows_names_as_text() -> None:
    text = page(of(variant("teacher", 0.9, 2.0), variant("<b>x", 0.8, 1.0, 1_234_567)))
    assert "<b>x" not in text
    assert "&lt;b&gt;x" in text
    assert "1.23 MB" in text
    assert text.count('role="img"') == 3
    assert size_text(999) == "1.0 kB"
