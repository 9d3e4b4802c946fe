"""Runs with cached teacher outputs equal runs without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.data.assemble import Reading
from tutelage.data.configured import load_data
from tutelage.data.formats import folder
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.sources import TeacherCache
from tutelage.training import Run

Net = Callable[..., Tapped]
READ = {"hinton": 192, "rkd": 192, "bss": 192, "fitnet": 196, "at": 176, "fsp": 32}
"""How many entries are read, of 4 x 48: logits; embeddings; logits and boundary samples; a map for an epoch, then
logits, with the dry run of its second fit twice; attention, but for the first batch, which shows its shape; flow, the
same, in its one epoch."""


@pytest.fixture
def train(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any) -> Callable[..., tuple[Any, Run]]:
    def train_once(method: str, cache: TeacherCache | None, seed: int = 3, data: Data = tiny_data) -> tuple[Any, Run]:
        recipe = Recipe(epochs=4, batch_size=16, lr=0.05)
        torch.manual_seed(0)
        student, teachers = (lambda: tiny_model(2)), [tiny_model(1)]
        run = Run(data, student, teachers, recipe=recipe, hardware=on_cpu, seed=seed, teacher_cache=cache)
        return state_of(find(method)(run)), run

    return train_once


@pytest.mark.parametrize(("method", "cached_passes"), READ.items())
def test_a_run_is_the_same_to_the_bit(
    method: str, cached_passes: int, train: Any, tiny_data: Data, tmp_path: Path, changed: Any
) -> None:
    computed, uncached_run = train(method, None)
    first, second = (TeacherCache(tmp_path, tiny_data) for _ in range(2))
    assert changed(computed, train(method, first)[0]) == set()
    state, run = train(method, second)  # by now everything is there
    assert changed(computed, state) == set()
    assert second.misses <= 4 * len(run.fits) + 16  # of the dry runs, and of a first batch
    assert second.hits == cached_passes
    passes = [
        sum(r["forward_passes"]["teacher"] for f in counted_run.fits for r in f.history)
        for counted_run in (run, uncached_run)
    ]
    assert passes[0] < passes[1]


@pytest.mark.parametrize("method", ["hinton", "at"])
def test_images_may_be_files(method: str, train: Any, tiny_data: Data, tmp_path: Path, changed: Any) -> None:
    for part, split in tiny_data.splits.items():
        for index, (image, label) in enumerate(zip(split.inputs, split.labels.tolist(), strict=True)):  # type: ignore[arg-type]
            file = tmp_path / "pictures" / part / tiny_data.classes[label] / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze(2).numpy()).save(file)
    data = folder.load(tmp_path / "pictures", reading=Reading(in_memory_bytes=0))
    assert not data.train.in_memory
    computed, _ = train(method, None, data=data)
    for _ in range(2):
        store = TeacherCache(tmp_path / "cache", folder.load(tmp_path / "pictures", reading=Reading(in_memory_bytes=0)))
        assert changed(computed, train(method, store, data=data)[0]) == set()
    assert store.hits == READ[method]


def test_methods_and_seeds_share_the_cache(train: Any, tiny_data: Data, tmp_path: Path) -> None:
    hinton = TeacherCache(tmp_path, tiny_data)
    train("hinton", hinton, seed=3)
    other = TeacherCache(tmp_path, tiny_data)
    train("bss", other, seed=3)
    assert other.misses <= 4
    seed = TeacherCache(tmp_path, tiny_data)
    train("hinton", seed, seed=4)
    assert seed.hits > seed.misses / 4  # nine views a sample, of which the first seed saw four


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_configuration_keeps_them_where_it_says(precision: str, tmp_path: Path) -> None:
    import tutelage

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fields: Any = {"epochs": 2, "per_class": 8, "teacher_cache": str(tmp_path), "views": 2, "validation": 0.0}
    fields["precision"] = precision
    with pytest.warns(UserWarning, match="chance level"):
        result = tutelage.distill(teacher, lambda: student, "digits", teacher_cache_dtype="float16", **fields)
    (file,) = tmp_path.glob("*.outputs")
    assert file.name.endswith(f"-{precision}-logits-float16.outputs")
    assert result.metrics["data"]["views"] == {"pad": 1, "flip": False, "limit": 2, "count": 2}
    assert "--views 2" in result.metrics["command"]


def test_few_views_are_some_of_all_and_the_image_is_one_of_them() -> None:
    all_views, limited_views = CropsAndFlips(pad=4, flip=True), CropsAndFlips(pad=4, flip=True, limit=7)
    image = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (all_views.count, limited_views.count, CropsAndFlips(pad=1, limit=50).count) == (162, 7, 9)
    limited_images = limited_views(image.expand(7, -1, -1, -1), torch.arange(7))
    all_images = all_views(image.expand(162, -1, -1, -1), torch.arange(162))
    view_numbers = [int((all_images == view_image).flatten(1).all(1).nonzero()[0]) for view_image in limited_images]
    assert view_numbers[limited_views.identity] == all_views.identity
    assert len(set(view_numbers)) == 7
    assert any(number >= 81 for number in view_numbers)  # mirror images too
    nine_limited, nine_images = (
        CropsAndFlips(pad=1, limit=n)(image.expand(9, -1, -1, -1), torch.arange(9)) for n in (9, None)
    )
    assert torch.equal(nine_limited.unique(dim=0), nine_images.unique(dim=0))


def test_the_number_of_views_comes_from_the_configuration(refused: Any) -> None:
    assert load_data(Config(data="digits", views=3)).views.count == 3
    assert open_data("digits").views.count == 9
    with refused("the limit of views must be 1 or more", "0"):
        CropsAndFlips(pad=1, limit=0)
