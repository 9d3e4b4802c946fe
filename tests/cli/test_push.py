"""``tutelage push``: the files for the hub, what they must not contain, and errors of the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tutelage
from tutelage.config import Config
from tutelage.data import open_data
from tutelage.models.weights import read_state
from tutelage.runs import execute
from tutelage.runs.hub import hub_files, push
from tutelage.runs.model_card import without_folders
from tutelage.runs.models import open_model

Refused = Callable[..., Any]
NAMES = ["model.safetensors", "README.md", "config.json", "result.json", "load.py"]


@pytest.fixture
def finished(teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher, tmp_path / "run"))


class Hub:
    """Records what an ``HfApi`` is called with."""

    def __init__(self) -> None:
        self.repo: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def create_repo(self, **options: Any) -> str:
        self.repo = options
        return f"https://hub/{options['repo_id']}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id == self.repo["repo_id"]
        self.files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}


def test_exactly_these_files_are_uploaded(finished: Path) -> None:
    hub = Hub()
    pushed = push(finished, "me/digits", private=True, api=hub)
    assert hub.repo == {"repo_id": "me/digits", "private": True, "exist_ok": True}
    assert sorted(hub.files) == sorted(NAMES)
    assert pushed.address == "https://hub/me/digits"
    assert pushed.files == {name: len(hub.files[name]) for name in NAMES}
    assert not (finished / "hub").exists()


def test_dry_run_writes_and_lists_the_same_files_without_the_library(
    finished: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    code, out, _ = run("push", str(finished), "me/digits", "--dry-run")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[:-1]] == NAMES
    assert out.splitlines()[-1] == f"written to {finished / 'hub'}"
    assert {file.name: file.read_bytes() for file in (finished / "hub").iterdir()} == hub_files(finished, "me/digits")
    code, _, err = run("push", str(finished), "me/digits")
    assert code == 2
    assert "tutelage[hf]" in err


def test_uploaded_weights_are_those_of_the_run_and_load_by_the_script(finished: Path, monkeypatch: Any) -> None:
    tutelage.calibrate(finished, device="cpu")
    push(finished, "me/digits", dry_run=True)
    state, _ = read_state(finished / "student.safetensors")
    uploaded, header = read_state(finished / "hub" / "model.safetensors")
    assert all(torch.equal(value, uploaded[key]) for key, value in state.items())
    assert header == json.loads((finished / "hub" / "config.json").read_text())
    monkeypatch.chdir(finished)
    namespace: dict[str, Any] = {"__file__": str(finished / "hub" / "load.py")}
    exec((finished / "hub" / "load.py").read_text(), namespace)
    pixels = torch.rand(3, 1, 8, 8)
    expected = open_model(str(finished), open_data("digits"))
    torch.testing.assert_close(namespace["student"](pixels), expected(pixels))
    assert namespace["temperature"] == header["calibration"]["temperature"]


def test_card_has_the_metadata_that_the_hub_reads(finished: Path) -> None:
    text = hub_files(finished, "me/digits")["README.md"].decode()
    _, front, _ = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    result = json.loads((finished / "result.json").read_text())
    assert metadata["pipeline_tag"] == "image-classification"
    (entry,) = metadata["model-index"]
    (evaluated,) = entry["results"]
    assert {metric["type"]: metric["value"] for metric in evaluated["metrics"]}["accuracy"] == result["test"][
        "accuracy"
    ]
    library = pytest.importorskip("huggingface_hub", reason="needs the extra hf")
    card = library.ModelCard(text)
    card_metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert card_metrics["nll"] == result["test"]["nll"]
    assert card.data.library_name == "tutelage"


def test_absolute_paths_do_not_leave_the_machine(finished: Path, tiny_npz: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret name" / "of customer"
    secret.mkdir(parents=True)
    file = Path(shutil.copy(tiny_npz.removeprefix("npz:"), secret / "tiny.npz"))
    fields: dict[str, Any] = {"data": f"npz:{file}", "epochs": 1, "device": "cpu", "workers": 0, "batch_size": 16}
    (secret / "net.py").write_text("from tests.conftest import TinyNet\n\n\ndef make():\n    return TinyNet()\n")
    spec = f"{secret / 'net.py'}:make"
    execute(Config(student=spec, **fields), secret / "teacher")
    execute(
        Config(
            student=spec,
            teacher=(f"{spec}@{secret / 'teacher' / 'student.safetensors'}",),
            init=f"{spec}@{secret / 'teacher' / 'student.safetensors'}",
            teacher_cache=str(secret / "cache"),
            method="hinton",
            **fields,
        ),
        secret / "run",
    )
    files = hub_files(secret / "run", "me/tiny")
    assert sorted(files) == sorted(NAMES)
    for name, content in files.items():
        for word in (b"secret", b"customer", str(tmp_path).encode(), b"sha256", b"teacher_cache"):
            assert word not in content, (name, word)
    assert "The code of the network, `net.py:make`, is not in this repository" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("folder:/home/u/my photos", "folder:my photos"),
        ("resnet8@/tmp/a/w.pt", "resnet8@w.pt"),
        ("human:/a/b.npz:worst", "human:b.npz:worst"),
        ("0.4+outside:0.3:folder:/a/b", "0.4+outside:0.3:folder:b"),
        ("/home/u/net.py:Net", "net.py:Net"),
        ("~u/net.py:Net", "net.py:Net"),
        (r"C:\Users\u\photos", "photos"),
        ("hf:owner/name", "hf:owner/name"),
        ("timm/resnet18", "timm/resnet18"),
        ("runs/teacher", "runs/teacher"),
        ("https://a.b/c", "https://a.b/c"),
        ("wrn-16-2", "wrn-16-2"),
    ],
)
def test_absolute_paths_are_shortened_to_their_last_part(text: str, public: str) -> None:
    assert without_folders(text) == public
    assert without_folders({"a": [text, 1], text: None}) == {"a": [public, 1], public: None}


def test_errors_of_the_hub_are_one_line(finished: Path, refused: Refused, tmp_path: Path) -> None:
    class Refusing(Hub):
        def create_repo(self, **options: Any) -> str:
            raise OSError("401 Client Error\n\nInvalid username or password.")

    with refused("the hub did not take me/digits: 401 Client Error", "hf auth login"):
        push(finished, "me/digits", api=Refusing())
    for repo in ("digits", "me/a/b", "me/../x y", ""):
        with refused("is no repository of the hub; write USER/REPO"):
            push(finished, repo, api=Hub())
    with refused("is not the folder of a finished run"):
        push(tmp_path, "me/digits", api=Hub())
