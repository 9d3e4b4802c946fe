"""The key of a run: new fields of the configuration do not change it unless they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.config import Config
from tutelage.studies.plan import FIRST_FIELDS, Planner
from tutelage.studies.study import Study


def keys(**train: Any) -> list[str]:
    study = Study(
        name="keys",
        data=("digits",),
        teachers=("resnet14",),
        students=("resnet8",),
        methods=("hinton", "dml"),
        seeds=1,
        train={"epochs": 2, **train},
    )
    planner = Planner(study, Path("study"), {"digits": "a fingerprint"})
    return [planned.job.key for planned in planner.planned_runs({})]


def test_keys_are_those_of_the_first_version() -> None:
    assert keys() == RECORDED
    assert Config.model_fields.keys() >= FIRST_FIELDS


def test_a_later_field_is_in_the_key_where_it_is_used() -> None:
    assert keys(decay_norms=True, layer_decay=1.0) == keys()
    assert not set(keys(decay_norms=False)) & set(keys())
    assert not set(keys(optimizer="AdamW")) & set(keys(optimizer="AdamW", lr=0.05))


def test_preset_and_its_fields_have_one_key() -> None:
    assert keys(preset="adamw") == keys(optimizer="AdamW")


RECORDED = ["d8aad63153bf6da5", "923becbafd94325a", "0d4fdc4acd3cf30e", "8b25d09cc7a52e42"]
