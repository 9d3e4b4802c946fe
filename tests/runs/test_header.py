"""The header of a weights file, and the hash in the result beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Config
from tutelage.data import Data, open_data
from tutelage.errors import TutelageError
from tutelage.models.load import make_model
from tutelage.models.weights import load_weights, save_weights
from tutelage.runs import execute, open_model

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made once; copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    execute(RUN, folder)
    return folder


RUN = Config(data="digits", student="resnet8x0.25", epochs=1, per_class=4, batch_size=32, workers=0)


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(TutelageError) as exc_info:
        act()
    assert "\n" not in str(exc_info.value)
    assert len(str(exc_info.value)) < 1300
    return str(exc_info.value)


# --- the hash


def test_a_damaged_file_is_refused_wherever_it_is_opened(folder: Path, digits: Data) -> None:
    file = folder / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # one bit of a weight
    file.write_bytes(content)
    for act in (
        lambda: open_model(str(folder), digits),
        lambda: open_model(f"resnet8x0.25@{file}", digits),
        lambda: execute(RUN, folder),
        lambda: execute(RUN.replace(teacher=str(folder), method="hinton")),
    ):
        message = refusal(act)
        assert "student.safetensors" in message
        assert "SHA-256" in message


def test_a_whole_file_is_opened_and_one_without_a_hash_too(folder: Path, digits: Data) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert len(result["student_sha256"]) == 64
    open_model(str(folder), digits)
    del result["student_sha256"]
    (folder / "result.json").write_text(json.dumps(result))
    open_model(str(folder), digits)
    assert execute(RUN, folder).metrics == result
    (folder / "result.json").unlink()
    open_model(str(folder), digits)


@pytest.mark.parametrize("hash_", ["0" * 64, "", 5])
def test_a_different_hash_is_refused(folder: Path, digits: Data, hash_: object) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "student_sha256": hash_}))
    assert "sha256" in refusal(lambda: open_model(str(folder), digits)).lower().replace("-", "")


# --- the header

WRONG: dict[str, dict[str, Any]] = {
    "mean is a number": {"mean": 5},
    "mean is null": {"mean": None},
    "mean is empty": {"mean": [], "std": []},
    "mean has text": {"mean": [1, "a"], "std": [1, 1]},
    "mean is text": {"mean": "0.5"},
    "mean is true": {"mean": [True]},
    "mean is too long": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]},
    "mean is a table": {"mean": {"0": 0.1}},
    "mean is huge": {"mean": [1e300]},
    "std is shorter": {"mean": [0.1], "std": []},
    "std alone": {"mean": ..., "std": [1.0]},
    "std is zero": {"std": [0]},
    "std is negative": {"std": [-1.0]},
    "std is tiny": {"std": [1e-300]},
    "std is nested": {"std": [[1.0]]},
    "classes are a number": {"classes": 10},
    "classes are numbers": {"classes": list(range(10))},
    "classes are null": {"classes": None},
    "the image's shape is text": {"image_shape": "1x8x8"},
    "the image's shape is short": {"image_shape": [8, 8]},
    "the image's shape is zero": {"image_shape": [1, 0, 8]},
    "the image's shape is huge": {"image_shape": [1, 10**9, 10**9]},
    "model is a number": {"model": 5},
    "model is a list": {"model": ["resnet8"]},
    "surgery is a table": {"surgery": {"operation": "branch"}},
    "surgery is text": {"surgery": "branch"},
    "an operation is text": {"surgery": ["branch"]},
    "an operation without a name": {"surgery": [{}]},
    "an unknown operation": {"surgery": [{"operation": "os.system"}]},
    "a private module": {"surgery": [{"operation": "__init__"}]},
    "a wrong setting": {"surgery": [{"operation": "resize", "layer": 5, "inputs": "a", "outputs": 1e300}]},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_types_in_the_header(tmp_path: Path, digits: Data, change: dict[str, Any]) -> None:
    about = {"model": "resnet8", "mean": [0.3], "std": [0.2], "image_shape": [1, 8, 8]} | change
    about = {name: value for name, value in about.items() if value is not ...}
    network = make_model("resnet8", num_classes=10, input_shape=(1, 8, 8)).module
    save_weights(tmp_path / "student.safetensors", network, about)
    refusal(lambda: open_model(str(tmp_path), digits))
    refusal(lambda: open_model(f"resnet8@{tmp_path / 'student.safetensors'}", digits))


def test_numbers_that_json_does_not_have(tmp_path: Path, digits: Data) -> None:
    from safetensors.torch import save_file

    network = make_model("resnet8", num_classes=10, input_shape=(1, 8, 8)).module
    for text in ('{"std": [Infinity]}', '{"mean": [NaN]}', '{"std": [1e999]}', "[" * 5000, '{"std": [1], "std": [2]}'):
        save_file(network.state_dict(), tmp_path / "w.safetensors", metadata={"tutelage": text})
        refusal(lambda: open_model(f"resnet8@{tmp_path / 'w.safetensors'}", digits))


def test_one_mean_for_all_channels(tmp_path: Path, tiny_data: Data) -> None:
    channels = tiny_data.image_shape[0]
    network = make_model("resnet8", num_classes=tiny_data.num_classes, input_shape=tiny_data.image_shape).module
    for count in {1, channels}:
        about = {"model": "resnet8", "mean": [0.5] * count, "std": [2] * count, "note": "other keys are fine"}
        save_weights(tmp_path / "student.safetensors", network, about)
        assert open_model(str(tmp_path), tiny_data).std.flatten().tolist() == [2.0] * count


# --- keys and containers of other people's files


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "net", "model", "model_state"])
def test_prefixes_and_containers(tmp_path: Path, prefix: str, container: str | None) -> None:
    network, other = (
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
    )
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    save_functions = (
        state
        if container is None
        else {"epoch": 3, container: state, "optimizer_state_dict": optimizer.state_dict(), "loss": torch.tensor(0.5)}
    )
    torch.save(save_functions, tmp_path / "w.pt")
    load_weights(tmp_path / "w.pt", other)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_compiled_module(tmp_path: Path) -> None:
    network, other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    compiled = nn.Sequential(network[0], torch.compile(network[1]))
    assert any(key.startswith("1._orig_mod.") for key in compiled.state_dict())
    save_weights(tmp_path / "w", compiled, {})
    load_weights(tmp_path / "w", other)
    assert torch.equal(other[1].weight, network[1].weight)


def test_a_file_of_another_network_keeps_its_names_in_the_message(tmp_path: Path) -> None:
    torch.save({"features.weight": torch.ones(1), "features.bias": torch.ones(1)}, tmp_path / "w.pt")
    assert "features.bias" in refusal(lambda: load_weights(tmp_path / "w.pt", nn.Sequential(nn.Linear(1, 1))))
