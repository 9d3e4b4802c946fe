"""Teachers of another image size than the student's: where the size comes from, what is printed, caches and methods."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tutelage
from tests.conftest import Command
from tests.models.loading import FakeTimm
from tutelage.config import Config
from tutelage.data import CropsAndFlips, Data, Split
from tutelage.data.modality import Vectors
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs import execute
from tutelage.runs.models import open_teachers

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32", "lr": 0.01}

pytestmark = pytest.mark.filterwarnings("ignore:.*chance level")


class ByHand(nn.Module):
    """A network of 8x8 images that resizes them and runs another network: the reference for ``teacher_size``."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        size = (self.side, self.side)
        logits: Tensor = self.network(F.interpolate(x, size, mode="bilinear", antialias=True))
        return logits


def network_of(side: int, seed: int = 0, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model("resnet8x0.5", num_classes=4, input_shape=(channels, side, side)).module


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., str]:
    """Makes a teacher's file that records images of this height and width, and names it."""

    def make(height: int, width: int | None = None, spec: str = "resnet8x0.5") -> str:
        shape = [1, height, height if width is None else width]
        file = tmp_path / "x".join(map(str, shape))
        save_weights(file, network_of(8), {"classes": list("abcd"), "image_shape": shape, "mean": [0.5], "std": [0.25]})
        return f"{spec}@{file}"

    return make


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> FakeTimm:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def lines_of(config: Config) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return execute(config, announce=lines.append), lines


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (12, 20)])
def test_the_size_that_a_file_records_is_used_and_printed(
    height: int, width: int, file_of: Callable[..., str], tiny_npz: str
) -> None:
    config = Config(data=tiny_npz, student="resnet8x0.25", teacher=(file_of(height, width),), method="hinton", **SHORT)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*trained on images of.*")  # it is not: the images are resized
        _, lines = lines_of(config)
    assert f": images resized from 8 x 8 to {height} x {width} pixels (recorded with the weights); " in lines[0]
    assert "images normalized with mean 0.5 and std 0.25 (recorded with the weights)" in lines[0]
    (teacher,) = open_teachers(config, tutelage.open_data(tiny_npz))
    assert teacher.model.size == (height, width)


def test_a_file_of_the_datas_size_is_not_resized(file_of: Callable[..., str], tiny_npz: str) -> None:
    _, lines = lines_of(Config(data=tiny_npz, student="resnet8x0.25", teacher=(file_of(8),), method="hinton", **SHORT))
    assert "resized" not in lines[0]


@pytest.mark.parametrize(("side", "resized"), [(20, True), (8, False)])
def test_a_given_size_replaces_the_recorded_one(
    side: int, resized: bool, file_of: Callable[..., str], tiny_npz: str
) -> None:
    config = Config(
        data=tiny_npz, student="resnet8x0.25", teacher=(file_of(16),), teacher_size=side, method="hinton", **SHORT
    )
    _, lines = lines_of(config)
    assert (f"images resized from 8 x 8 to {side} x {side} pixels (as given)" in lines[0]) == resized
    assert ("resized" in lines[0]) == resized


@pytest.mark.parametrize("method", ["hinton", "bss"])
def test_training_equals_that_under_a_teacher_that_resizes_by_hand(
    method: str, tiny_data: Data, tiny_model: Callable[..., Tapped]
) -> None:
    """Up to rounding, since that teacher's images are normalised first; ``bss`` passes attacked images too."""
    network = network_of(16)
    students, metrics = [], []
    for teacher, fields in ((network, {"teacher_size": 16}), (ByHand(network, 16), {})):
        result = tutelage.distill(
            teacher, tiny_model(3), tiny_data, method=method, teacher_mean=0.5, teacher_std=0.25, **fields, **SHORT
        )
        students.append(result.model)
        metrics.append(result.metrics["test"])
    assert metrics[0].keys() == metrics[1].keys()
    for one, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    exact = tutelage.distill(
        Tapped(network, (0.5,), (0.25,), size=(16, 16)), tiny_model(3), tiny_data, method=method, **SHORT
    )
    assert all(torch.equal(a, b) for a, b in zip(exact.model.parameters(), students[0].parameters(), strict=True))
    assert exact.metrics["test"] == metrics[0]


def test_a_network_of_one_size_only_can_teach_images_of_another(
    tmp_path: Path, tiny_npz: str, file_of: Callable[..., str]
) -> None:
    code = tmp_path / "nets.py"
    code.write_text(
        "from torch import nn\n\n\ndef net(num_classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_classes))\n"
    )
    spec = f"{code}:net"
    file = tmp_path / "w.safetensors"
    module = make_model(spec, num_classes=4, input_shape=(1, 16, 16)).module
    save_weights(file, module, {"classes": list("abcd"), "image_shape": [1, 16, 16]})
    tutelage.distill(f"{spec}@{file}", "resnet8x0.25", tiny_npz, **SHORT)
    torch.save(module.state_dict(), tmp_path / "w.pt")  # records nothing: the network is built for the given size
    tutelage.distill(f"{spec}@{tmp_path / 'w.pt'}", "resnet8x0.25", tiny_npz, teacher_size=16, **SHORT)


# --- published weights


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_published_weights_see_images_of_their_own_size(name: str, timm: FakeTimm, tiny_npz: str) -> None:
    data = tutelage.open_data(tiny_npz)
    (teacher,) = open_teachers(Config(teacher=(f"timm/{name}",)), data)
    assert (teacher.model.size, teacher.resizing) == ((224, 224), "of the published weights")
    assert [call.get("img_size") for call in timm.calls] == [None]  # position embeddings stay as they were trained
    seen: list[tuple[int, ...]] = []
    teacher.model.module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    teacher.model(torch.rand(2, 1, 8, 8))
    assert seen == [(2, 1, 224, 224)]


def test_a_given_size_replaces_that_of_published_weights(timm: FakeTimm, tiny_npz: str) -> None:
    data = tutelage.open_data(tiny_npz)
    (teacher,) = open_teachers(Config(teacher=("timm/vit_tiny",), teacher_size=32), data)
    assert (teacher.model.size, teacher.resizing) == ((32, 32), "as given")
    assert [call.get("img_size") for call in timm.calls] == [None, (32, 32)]
    (teacher,) = open_teachers(Config(teacher=("timm/vit_tiny",), teacher_size=8), data)
    assert teacher.model.size is None
    assert timm.calls[-1]["img_size"] == (8, 8)


def test_students_of_timm_are_still_built_for_the_datas_size(timm: FakeTimm, tiny_npz: str) -> None:
    from tutelage.runs.models import make_student

    model = make_student("timm/vit_tiny", tutelage.open_data(tiny_npz), pretrained=True)
    assert model.size is None
    assert timm.calls[-1]["img_size"] == (8, 8)


# --- objects


def test_a_networks_own_size_is_kept_and_can_be_replaced(
    tiny_data: Data, tiny_model: Callable[..., Tapped], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Tapped(network_of(16), (0.5,), (0.25,), size=(16, 16))
    with caplog.at_level("INFO", "tutelage"):
        tutelage.distill(teacher, tiny_model(), tiny_data, **SHORT)
        tutelage.distill(teacher, tiny_model(), tiny_data, teacher_size=12, **SHORT)
    own, given = (line for line in caplog.messages if line.startswith("teacher"))
    assert "images resized from 8 x 8 to 16 x 16 pixels (its own)" in own
    assert "images resized from 8 x 8 to 12 x 12 pixels (as given)" in given
    assert teacher.size == (16, 16)


def test_several_teachers_have_a_size_each(file_of: Callable[..., str], tiny_npz: str) -> None:
    names = (file_of(16), file_of(4), file_of(8))
    models = [teacher.model for teacher in open_teachers(Config(teacher=names), tutelage.open_data(tiny_npz))]
    assert [model.size for model in models] == [(16, 16), (4, 4), None]
    tutelage.distill(names, "resnet8x0.25", tiny_npz, **SHORT)


# --- errors


@pytest.mark.parametrize("value", [3, 0, -8, 8.5, "large", 5000, "16,16", True])
def test_invalid_sizes_are_refused(value: Any, refused: Any) -> None:
    with refused("teacher_size"):
        Config(teacher_size=value)


def test_a_size_without_effect_is_refused(tiny_npz: str, tiny_data: Data, refused: Any) -> None:
    with refused("teacher_size=16 has no effect here", "there is no teacher", "leave it out"):
        tutelage.train("resnet8x0.25", tiny_npz, teacher_size=16, **SHORT)
    vectors = Data.from_arrays((torch.rand(40, 6), torch.arange(40) % 4), test_share=0.25, modality=Vectors())
    with refused("teacher_size=16 resizes images", vectors.name, "leave it out"):
        tutelage.distill(nn.Linear(6, 4), nn.Linear(6, 4), vectors, teacher_size=16, **SHORT)


def test_a_teacher_that_fails_at_its_size_is_one_clear_line(tiny_data: Data, refused: Any) -> None:
    with refused("the teacher of learner 'student'", "cannot teach on images"):
        tutelage.distill(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), tiny_data,
            teacher_size=16, **SHORT,
        )  # fmt: skip


# --- runs: commands, the identity of a folder, caches


def test_the_size_is_an_option_of_the_command_and_of_its_record(
    run: Command, file_of: Callable[..., str], tiny_npz: str, tmp_path: Path
) -> None:
    words = ["--student", "resnet8x0.25", "--data", tiny_npz, "--teacher", file_of(8), "--teacher-size", "16"]
    other = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--out", str(tmp_path / "run")]
    code, _, err = run("distill", *words, *other)
    assert code == 0
    assert "images resized from 8 x 8 to 16 x 16 pixels (as given)" in " ".join(err.split())
    command = json.loads((tmp_path / "run" / "result.json").read_text())["command"]
    assert "--teacher-size 16" in command
    code, _, err = run("distill", *words[:-1], "12", *other)
    assert code == 2
    assert "teacher_size" in err


def test_a_run_is_not_resumed_under_another_recorded_size(
    tiny_npz: str, tmp_path: Path, refused: Any, file_of: Callable[..., str]
) -> None:
    name = file_of(16)
    config = Config(data=tiny_npz, student="resnet8x0.25", teacher=(name,), method="hinton", **SHORT)
    result = execute(config, tmp_path / "run")
    assert execute(config, tmp_path / "run").metrics == result.metrics
    file = Path(name.partition("@")[2])
    save_weights(
        file, network_of(8), {"classes": list("abcd"), "image_shape": [1, 12, 12], "mean": [0.5], "std": [0.25]}
    )
    with refused("teacher 1", "16 x 16", "12 x 12"):
        execute(config, tmp_path / "run")


def test_an_evaluation_against_the_teacher_resizes_as_the_training_did(
    run: Command, file_of: Callable[..., str], tiny_npz: str, tmp_path: Path
) -> None:
    teacher, folder = file_of(16), str(tmp_path / "run")
    result = tutelage.distill(teacher, "resnet8x0.25", tiny_npz, out=folder, **SHORT)
    code, out, _ = run("evaluate", folder, "--device", "cpu", "--json", "--teacher", teacher)
    assert code == 0
    assert json.loads(out)["kl_to_teacher"] == pytest.approx(result.metrics["test"]["kl_to_teacher"])


def test_cached_outputs_of_a_resizing_teacher_equal_computed_ones(
    tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path
) -> None:
    """Sizes share a folder without sharing a file; a file's name and header name the size."""
    network, folder = network_of(8), tmp_path / "cache"
    for size in (None, 16, 12, 16):
        states = []
        for fields in ({}, {"teacher_cache": str(folder)}):
            result = tutelage.distill(
                network, tiny_model(3), tiny_data, teacher_size=size, teacher_mean=0.5, teacher_std=0.25, **fields,
                **SHORT | {"epochs": 3},
            )  # fmt: skip
            states.append(result.model.state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    names = sorted(file.name.split("-", 1)[1] for file in folder.glob("*.outputs"))
    assert names == [f"{size}float32-logits-float32.outputs" for size in ("12x12-", "16x16-", "")]
    sized = next(file for file in folder.iterdir() if "16x16" in file.name)
    assert b'"size": [16, 16]' in sized.read_bytes()[:4096]


def test_a_cache_file_without_a_size_still_fits_a_teacher_without_one(
    tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path
) -> None:
    """Files of versions that recorded no size."""
    from tests.sources.caching import count_passes, fill_cache

    file = fill_cache(tiny_data, tiny_model(1), tmp_path)
    content = file.read_bytes()
    start = content.index(b"{")
    header = json.loads(content[start:4096].rstrip(b"\0"))
    assert header.pop("size") is None
    text = json.dumps(header, sort_keys=True).encode()
    old = content[: start - 4] + len(text).to_bytes(4, "little") + text
    file.write_bytes(old.ljust(4096, b"\0") + content[4096:])
    hits, misses = count_passes(tiny_data, tiny_model(1), tmp_path)
    assert (hits, misses) == (32, 16)  # shapes are read from the first batch


# --- methods that compare feature maps

MAPS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {"fitnet": {}, "at": {}, "fsp": {}, "sp": {}, "nst": {}, "vid": {}, "reviewkd": {}, "ab": {}, "ofd": {}, "ft": {}}
)


@pytest.mark.filterwarnings("ignore:.*choose a smaller student")
@pytest.mark.parametrize(("size", "side"), [(16, 32), (32, 16)])
@pytest.mark.parametrize("method", MAPS)
def test_methods_on_feature_maps_accept_maps_of_other_sizes(method: str, size: int, side: int) -> None:
    """Each of them trains: the maps of the two networks differ by a factor of two along both axes."""
    generator = torch.Generator().manual_seed(7)

    def part(count: int) -> Split:
        images = torch.randint(255, (count, size, size, 3), generator=generator, dtype=torch.uint8)
        return Split.of(images, torch.arange(count) % 4)

    data = Data("tiny", tuple("abcd"), part(32), part(16), part(16), CropsAndFlips(pad=1))
    result = tutelage.distill(
        network_of(side, channels=3), "resnet8x0.25", data, method=method, settings=MAPS[method], teacher_size=side,
        **SHORT,
    )  # fmt: skip
    assert result.metrics["forward_passes"]["teacher"] > 0
    assert all(bool(value.isfinite().all()) for value in result.model.parameters())


def test_a_warning_of_sizes_is_left_to_commands_that_do_not_resize(
    run: Command, file_of: Callable[..., str], tiny_npz: str
) -> None:
    code, _, err = run("evaluate", file_of(16), "--data", tiny_npz, "--device", "cpu")
    assert code == 0
    assert "trained on images of 16 x 16 pixels and those of npz:" in err
