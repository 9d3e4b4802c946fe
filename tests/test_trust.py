"""Only code that the user named in the command is imported, not code that only a file names."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

import tutelage
from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.models.weights import save_weights
from tutelage.parsing import parse_yaml, write_yaml
from tutelage.runs import open_model
from tutelage.trust import check_trusted, typed_specs

Run = Callable[..., tuple[int, str]]

CODE = """
from pathlib import Path
from typing import Any
from torch import nn
Path("it_ran").touch()

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, num_classes))

    def forward(self, x):
        return self.body(x)
"""


class NetworkOfForeignRun(nn.Module):
    """A network with the weights of the gift's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def foreign_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's run folder in the current folder, with code beside the weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "gift"
    save_weights(folder / "student.safetensors", NetworkOfForeignRun(), {"model": "gift.code:Net"})
    (folder / "code.py").write_text(CODE)
    yield folder
    for name in ("gift", "gift.code"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line; its exit code and all that it printed."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tutelage", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out + err

    return call


def rename_model(folder: Path, spec: str) -> None:
    save_weights(folder / "student.safetensors", NetworkOfForeignRun(), {"model": spec})


def check_refusal(output: str, *words: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert "Traceback" not in output
    assert "--trust" in errors[0]
    for fragment in words:
        assert fragment in errors[0], output
    assert not Path("it_ran").exists()
    assert "gift" not in sys.modules


COMMANDS = {
    "evaluate": "evaluate gift --data digits",
    "teacher to compare with": "evaluate resnet8@own.safetensors --data digits --teacher gift",
    "export": "export gift --data digits --onnx out.onnx",
    "predict": "predict gift image.png --classes a,b,c",
    "distill": "distill --teacher gift --data digits --epochs 1 --per-class 4",
    "config": "train --config gift/config.yaml",
    "teacher in a config": "distill --config gift/taught.yaml",
    "weights in a config": "distill --config gift/weights.yaml",
    "study": "study gift/study.toml --out study",
    "trained teacher in a study": "study gift/trained.toml --out study",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_file_imports_nothing(run: Run, foreign_run: Path, command: str) -> None:
    save_weights("own.safetensors", tutelage_net(), {})
    Image.new("L", (8, 8)).save("image.png")
    (foreign_run / "config.yaml").write_text("data: digits\nstudent: gift.code:Net\nepochs: 1\nper_class: 4\n")
    (foreign_run / "taught.yaml").write_text("data: digits\nteacher: gift\nepochs: 1\nper_class: 4\n")
    (foreign_run / "weights.yaml").write_text(
        "data: digits\nteacher: 'gift.code:Net@gift/student.safetensors'\nepochs: 1\n"
    )
    (foreign_run / "study.toml").write_text("data = 'digits'\nstudents = 'gift.code:Net'\nteachers = 'resnet8'\n")
    (foreign_run / "trained.toml").write_text("data = 'digits'\nstudents = 'resnet8'\nteachers = 'gift'\n")
    code, output = run(*command.split())
    assert code == 2
    check_refusal(output, "'gift.code:Net'", str(foreign_run / "code.py"))
    assert not Path("out.onnx").exists()
    assert not Path("study/runs").exists()


def tutelage_net() -> nn.Module:
    from tutelage.models.load import make_model

    return make_model("resnet8", num_classes=10, input_shape=(1, 8, 8)).module


@pytest.mark.parametrize(
    ("spec", "origin"),
    [
        ("os:getcwd", "os"),
        ("this:Net", "this.py"),
        ("torchvision.models:resnet18", "torchvision"),
        ("gift:Net", "gift"),
        ("absent.code:Net", "'absent.code'"),
        ("timm/hf-hub:stranger/net", "timm"),
    ],
)
def test_networks_named_by_other_files_are_refused(run: Run, foreign_run: Path, spec: str, origin: str) -> None:
    rename_model(foreign_run, spec)
    code, output = run("evaluate", "gift", "--data", "digits")
    assert code == 2
    check_refusal(output, spec, origin)
    assert "this" not in sys.modules


def test_a_method_of_a_file_is_not_imported_either(run: Run, foreign_run: Path) -> None:
    for method in ("gift.code:Net", "gift/code.py:Net"):
        (foreign_run / "config.yaml").write_text(f"data: digits\nmethod: {method}\nepochs: 1\n")
        (foreign_run / "study.yaml").write_text(f"data: digits\nmethods: [{{method: '{method}'}}]\n")
        for words in (("train", "--config", "gift/config.yaml"), ("study", "gift/study.yaml", "--out", "study")):
            code, output = run(*words)
            assert code == 2
            check_refusal(output, method, str(foreign_run / "code.py"))


def test_typed_names_are_imported(run: Run, foreign_run: Path) -> None:
    code, output = run("evaluate", "gift.code:Net@gift/student.safetensors", "--data", "digits")
    assert code == 0, output
    assert Path("it_ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        "evaluate gift --data digits --trust",
        "export gift --data digits --onnx out.onnx --trust",
        "distill --teacher gift --student gift.code:Net --data digits --epochs 1 --per-class 4 --out out",
        "train --config gift/config.yaml --trust --out out",
        "train --config gift/config.yaml --model gift.code:Net --out out",
    ],
)
@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_trusted_code_is_imported(run: Run, foreign_run: Path, command: str) -> None:
    (foreign_run / "config.yaml").write_text("data: digits\nstudent: gift.code:Net\nepochs: 1\nper_class: 4\n")
    code, output = run(*command.split())
    assert code == 0, output
    assert Path("it_ran").exists()


def test_a_users_own_run_is_opened_again_by_its_command(run: Run, foreign_run: Path) -> None:
    command = [
        "train",
        "--model",
        "gift.code:Net",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--per-class",
        "4",
        "--out",
        "own",
    ]
    assert run(*command)[0] == 0
    assert run(*command)[0] == 0  # read back
    assert json.loads(Path("own/result.json").read_text())["method"] == "plain"
    Path("it_ran").unlink()
    for name in ("gift", "gift.code"):
        del sys.modules[name]
    code, output = run("evaluate", "own")
    assert code == 2
    check_refusal(output, "'gift.code:Net'")
    assert run("evaluate", "own", "--trust")[0] == 0


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_python_functions_refuse_untrusted_code(foreign_run: Path, tiny_npz: str) -> None:
    data = tutelage.open_data("digits")
    short = {"data": data, "epochs": 1, "batch_size": 512, "device": "cpu"}
    with pytest.raises(TutelageError, match="trust=True"):
        open_model("gift", data)
    with pytest.raises(TutelageError, match="trust=True"):
        tutelage.distill("gift", "resnet8x0.25", **short)
    assert not Path("it_ran").exists()
    assert tutelage.distill("gift", "resnet8x0.25", trust=True, **short).metrics
    assert tutelage.train("gift.code:Net", **short).metrics  # typed here
    study = tutelage.Study(data=tiny_npz, students="resnet8x0.25", teachers="gift", seeds=1, train={"epochs": 1})
    with pytest.raises(TutelageError, match="trust=True"):
        tutelage.run_study(study, "study")


def test_no_parent_package_is_imported_to_say_where_code_lies(foreign_run: Path) -> None:
    (foreign_run / "__init__.py").write_text(CODE)
    with pytest.raises(TutelageError, match=str(foreign_run / "code.py")):
        check_trusted("gift.code:Net", (), "a file")
    assert not Path("it_ran").exists()
    shutil.rmtree(foreign_run)
    with pytest.raises(TutelageError, match=r"module 'gift\.code'"):
        check_trusted("gift.code:Net", False, "a file")


def test_typed_specs() -> None:
    assert {"my:Net", "my:Net@a@b/w.safetensors"} <= typed_specs("my:Net@a@b/w.safetensors", None)
    check_trusted("my:Net", typed_specs("my:Net@w.safetensors"), "a file")
    for spec in ("resnet8", "timm/resnet18", "hf/owner/name", "hinton"):
        check_trusted(spec, False, "a file")
    with pytest.raises(TutelageError):
        check_trusted("my:Ne", typed_specs("my:Net"), "a file")


# --- report and compare, which only read


SPECS = ("gift.code:Net", "gift/code.py:Net", "gift.code:Net@gift/student.safetensors", "given:gift.code.Net")


@pytest.mark.parametrize("spec", SPECS)
def test_report_and_compare_import_nothing_that_a_study_names(
    run: Run, foreign_run: Path, spec: str, write_study: Callable[..., Path]
) -> None:
    def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
        return {"function": spec, "command": f"tutelage train --model {spec} --trust", "code": {"gift/code.py": "0"}}

    studies = [
        write_study(
            name, numbers, pairs=[(spec, spec)], methods=(spec,), seeds=(0, 1), train={"epochs": 1, "optimizer": spec}
        )
        for name in ("a", "b")
    ]
    for study in studies:
        declaration = json.loads((study / "study.json").read_text())
        declaration["methods"] = {row: {"method": spec, "settings": {"weight": spec}} for row in declaration["methods"]}
        (study / "study.json").write_text(json.dumps({**declaration, "search": {spec: {"weight": [spec]}}}))
        folder = study / "runs" / "plain-0"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"student: {spec}\nmethod: {spec}\nteacher: {spec}\n")
        (folder / "versions.json").write_text(json.dumps({"tutelage": spec}))
    commands = [("report", "a"), *(("report", "a", "--format", name) for name in ("md", "latex", "csv", "json"))]
    commands += [("report", "a", "--format", "parquet"), ("compare", "a", "b"), ("compare", "a", "b", "--json")]
    for words in commands:
        code, output = run(*words)
        assert code == 0, output
        assert not Path("it_ran").exists()
        assert "gift" not in sys.modules


@pytest.mark.parametrize("spec", SPECS)
def test_compare_imports_nothing_that_a_run_names(run: Run, foreign_run: Path, spec: str) -> None:
    short = ("--data", "digits", "--epochs", "1", "--per-class", "4", "--device", "cpu")
    assert run("train", "--model", "resnet8x0.25", *short, "--out", "a")[0] == 0
    shutil.copytree("a", "b")
    for folder in (Path("a"), Path("b")):
        config = parse_yaml((folder / "config.yaml").read_bytes())
        config |= {"student": spec, "method": spec, "teacher": [spec]}
        (folder / "config.yaml").write_text(write_yaml(config))
        rename_model(folder, spec)
        result = json.loads((folder / "result.json").read_text())
        del result["student_sha256"]
        (folder / "result.json").write_text(json.dumps({**result, "method": spec, "command": spec}))
    for words in (("compare", "a", "b"), ("compare", "a", "b", "--json")):
        code, output = run(*words)
        assert code == 0, output
    for words in (
        ("evaluate", "a"),
        ("evaluate", "a", "--teacher", "b"),
        ("export", "a", "--onnx", "out.onnx"),
    ):
        assert run(*words)[0] == 2
    assert run("report", "a")[0] == 0  # without the mistakes, for which the network would have to run
    assert not Path("it_ran").exists()
    assert "gift" not in sys.modules


# --- folders that are not writable


def test_finished_folders_on_a_read_only_medium_are_evaluated_exported_reported_and_compared(
    run: Run, tmp_path: Path, write_study: Callable[..., Path], read_only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    monkeypatch.chdir(tmp_path)
    short = ("--data", "digits", "--epochs", "1", "--per-class", "4", "--device", "cpu")
    assert run("train", "--model", "resnet8x0.25", *short, "--out", str(medium / "run"))[0] == 0
    shutil.move(write_study(methods=("at",), seeds=(0, 1)), medium / "study")
    files = {file: file.read_bytes() for file in medium.rglob("*") if file.is_file()}
    read_only(medium)
    commands: list[tuple[object, ...]] = [
        ("evaluate", medium / "run"),
        ("evaluate", medium / "run", "--teacher", medium / "run"),
        ("export", medium / "run", "--onnx", tmp_path / "out.onnx"),
        ("train", "--model", "resnet8x0.25", *short, "--out", medium / "run"),
        ("compare", medium / "run", medium / "run"),
        ("compare", medium / "study", medium / "study"),
        ("report", medium / "study", "--format", "md"),
        ("report", medium / "study", "--out", tmp_path / "page.html"),
    ]
    for words in commands:
        code, output = run(*map(str, words))
        assert code == 0, output
    code, output = run("report", str(medium / "study"))
    assert code == 2
    assert "Read-only file system" in output
    assert "Traceback" not in output
    assert {file: file.read_bytes() for file in medium.rglob("*") if file.is_file()} == files
