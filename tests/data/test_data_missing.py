"""Missing labels of targets other than classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.data.mask_folders import masks_folder
from tests.tasks.scenes import scene_data
from tests.videos import square_videos
from tutelage.data import Data, Maps, Masks, MultiLabel, Quantities, Strings, open_data
from tutelage.data.conditions import MissingLabels, SymmetricNoise

COUNT = 40


def data_of(kind: str) -> Data:
    """40 samples of a kind of targets, the first of which have no label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 4, 4, 1), generator=generator, dtype=torch.uint8)
    whole = torch.randint(0, 2, (COUNT, 4, 4), generator=generator)
    whole[:, 0, 0] = 1
    density = whole.float()
    targets, labels, names = {
        "masks": (Masks(), whole, ("a", "b")),
        "maps": (Maps(), density, ("saliency",)),
        "quantities": (Quantities(), density[:, 0, :2] + 0.5, ("x", "y")),
        "labels": (MultiLabel(), whole[:, 0, :2], ("x", "y")),
        "strings": (Strings(), whole[:, 0, :3], ("0", "1")),
    }[kind]
    unknown = targets.unknown
    assert unknown is not None
    labels[:4] = unknown  # type: ignore[assignment]
    pair = images, labels
    return Data.from_arrays(pair, pair, classes=names, targets=targets)


@pytest.mark.parametrize("kind", ["masks", "maps", "quantities", "labels", "strings"])
def test_all_of_a_label_is_removed(kind: str) -> None:
    data = data_of(kind)
    few, many = MissingLabels(0.3, seed=2)(data), MissingLabels(0.6, seed=2)(data)
    targets = data.targets
    before, after, later = (targets.labelled(some.train.labels) for some in (data, few, many))
    assert int(before.sum()) == COUNT - 4
    assert 3 <= int((before & ~after).sum()) <= 20
    assert not bool((later & ~after).any())  # a higher rate removes those of a lower one, and more
    assert int(later.sum()) < int(after.sum())
    rest = after.nonzero()[:, 0]
    torch.testing.assert_close(few.train.labels[rest], data.train.labels[rest], equal_nan=True)
    removed = few.train.labels[~after]
    assert bool((removed.isnan() | (removed == targets.unknown)).all())
    torch.testing.assert_close(few.test.labels, data.test.labels, equal_nan=True)
    entry = few.record[-1]
    assert (entry["condition"], entry["labelled"]) == ("MissingLabels", COUNT - 4)
    assert entry["changed"] == int((before & ~after).sum())
    assert entry["realised_rate"] == pytest.approx(entry["changed"] / (COUNT - 4))
    again = MissingLabels(0.3, seed=2)(data).train.labels
    torch.testing.assert_close(again, few.train.labels, equal_nan=True)


def test_targets_whose_samples_always_count_refuse(refused: Any) -> None:
    with refused("boxes of scenes cannot be missing", "leave the condition out"):
        MissingLabels(0.5)(scene_data(8, 4, 32))
    with refused("a box in each frame of squares cannot be missing"):
        MissingLabels(0.5)(square_videos(2, 3))
    with refused("SymmetricNoise is for data with one class for each sample", "masks for labels"):
        SymmetricNoise(0.5)(data_of("masks"))


def test_a_segmentation_run_trains_on_the_rest(tmp_path: Any) -> None:
    import tutelage

    masks_folder(tmp_path / "scenes", train=12, test=2)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4, "device": "cpu", "precision": "float32"}
    result = tutelage.train("fpn-10-0.125", f"masks:{tmp_path / 'scenes'}", noise="missing:0.5", **options)
    (entry,) = [entry for entry in result.metrics["data"]["record"] if entry.get("condition") == "MissingLabels"]
    assert 0 < entry["changed"] < entry["labelled"]
    assert result.metrics["test"]["mean_iou"] is not None
    assert len(open_data(f"masks:{tmp_path / 'scenes'}").train) == 12
