"""Methods beside the plain student."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.config import Config
from tutelage.studies.compare import compare


def test_rows_have_the_method_and_the_settings_they_name(tmp_path: Path) -> None:
    config = Config(student="resnet8x0.25", epochs=1, per_class=10, validation=0.0)
    rows = compare(
        config,
        {"soft": ("hinton", {"alpha": 0.5}), "softer": ("hinton", {"alpha": 0.5, "temperature": 8.0})},
        [3],
        tmp_path,
        teacher="resnet8x0.25",
        workers=1,
    )
    assert [row.method for row in rows] == ["teacher", "plain", "soft", "softer"]
    results = {
        name: json.loads((tmp_path / "seed-3" / name / "result.json").read_text())
        for name in ("teacher", "plain", "soft", "softer")
    }
    assert [result["method"] for result in results.values()] == ["plain", "plain", "hinton", "hinton"]
    assert results["soft"]["settings"] == {"alpha": 0.5, "temperature": 4.0}
    assert results["softer"]["settings"] == {"alpha": 0.5, "temperature": 8.0}
    assert results["plain"]["data"]["samples"]["train"] == 100
    assert "--per-class 10" in results["plain"]["command"]
