"""The command line: training, lists, help, export and the commands of studies."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import Command


def test_the_main_path(run: Command, teacher: Path) -> None:
    words = ["--data", "digits", "--noise", "0.4", "--student", "resnet8", "--epochs", "1", "--out", "runs/student"]
    code, out, err = run("distill", "--teacher", str(teacher), "--method", "hinton", "--set", "temperature=2", *words)
    assert code == 0
    assert "test accuracy, last epoch" in out
    assert "memorised of" in out
    assert out.strip().endswith("runs/student")
    assert "tutelage.distill(" in err  # the same in Python
    folder = Path("runs/student")
    names = {entry.name for entry in folder.iterdir()}
    assert {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "result.json",
        "student.safetensors",
        "checkpoints",
    } <= names
    assert yaml.safe_load((folder / "config.yaml").read_text())["settings"] == {"temperature": 2.0, "alpha": 0.9}
    result = json.loads((folder / "result.json").read_text())
    assert result["command"].startswith("tutelage distill")

    code, out, _ = run("evaluate", "runs/student", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == result["test"]["accuracy"]

    code, out, _ = run("distill", "--config", "runs/student/config.yaml", "--out", "runs/again", "--json")
    assert code == 0
    assert json.loads(out)["test"] == result["test"]
    assert (folder / "student.safetensors").read_bytes() == Path("runs/again/student.safetensors").read_bytes()


def test_the_printed_python_does_the_same(run: Command) -> None:
    import tutelage

    words = ("train", "--model", "resnet8", "--epochs", "1", "--lr", "0.1", "--noise", "0.2", "--no-augment")
    code, _, err = run(*words, "--out", "a")
    assert code == 0
    call = next(line for line in err.splitlines() if line.startswith("tutelage.train("))
    result = eval(call.replace("out='a'", "out='b'"), {"tutelage": tutelage})
    assert result.folder == Path("b")
    assert Path("a/student.safetensors").read_bytes() == Path("b/student.safetensors").read_bytes()


def test_the_command_in_the_result_does_the_same(run: Command, teacher: Path) -> None:

    run(
        "distill",
        "--teacher",
        str(teacher),
        "--epochs",
        "1",
        "--set",
        "alpha=0.5",
        "--optimizer",
        "adamw",
        "--out",
        "a",
    )
    words = shlex.split(json.loads(Path("a/result.json").read_text())["command"])[1:]
    assert run(*words, "--out", "b")[0] == 0
    assert Path("a/student.safetensors").read_bytes() == Path("b/student.safetensors").read_bytes()


def test_toml_and_yaml_configurations(run: Command) -> None:
    Path("run.toml").write_text('data = "digits"\nstudent = "resnet8"\nepochs = 1\nmilestones = [0.5]\n')
    Path("run.yaml").write_text("data: digits\nstudent: resnet8\nepochs: 1\nmilestones: [0.5]\n")
    assert run("train", "--config", "run.toml", "--out", "a")[0] == 0
    assert run("train", "--config", "run.yaml", "--out", "b")[0] == 0
    assert Path("a/config.yaml").read_text() == Path("b/config.yaml").read_text()


def test_a_home_folder_is_expanded_where_no_shell_does_it(
    run: Command, teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home_folder = tmp_path / "home"
    home_folder.mkdir()
    monkeypatch.setenv("HOME", str(home_folder))
    (home_folder / "c.yaml").write_text("data: digits\nstudent: resnet8x0.25\nepochs: 1\nper_class: 20\n")
    words = ("train", "--config=~/c.yaml", "--out=~/run", "--json")
    assert run(*words)[0] == 0
    assert (home_folder / "run" / "result.json").exists()
    assert (home_folder / "run" / "load.py").exists()
    assert not Path("~").exists()
    assert run("evaluate", "~/run", "--json")[0] == 0
    code, _, err = run("train", "--config=~nobody-of-this-name/c.yaml")
    assert code == 2
    assert "write the whole path" in err


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "distill",
        "evaluate",
        "export",
        "predict",
        "calibrate",
        "push",
        "report",
        "data",
        "methods",
        "tasks",
        "models",
    ],
)
def test_help_is_in_plain_english(run: Command, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    text = " ".join(out.split()).replace("- ", "-")  # a word may be divided at its hyphen
    for fragment in (
        "so many",
        "the picture asks",
        "is kept",
        "are kept",
        "Who follows",
        "told",
        "Judge",
        "comes along",
    ):
        assert fragment not in text
    if command == "distill":
        for term in ("Label noise", "instance-dependent", "Class imbalance", "cached", "Experiment trackers"):
            assert term in text
        assert "[default: hinton]" in text


def test_a_finished_run_is_shown_again(run: Command, teacher: Path) -> None:
    code, out, _ = run("train", "--model", "resnet8", "--epochs", "2", "--out", str(teacher), "--json")
    assert code == 0
    assert json.loads(out)["test"] == json.loads((teacher / "result.json").read_text())["test"]


def test_ctrl_c_prints_one_line_and_loses_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tutelage", "train", "--model", "resnet8x0.5", "--out", str(tmp_path / "run")]
    # A shell that starts a job in the background makes it deaf to Ctrl-C; a person's does not.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    job = subprocess.Popen(
        [*words, "--epochs", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_sigint,  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert err.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in err
    assert list((tmp_path / "run").glob("checkpoints/*.ckpt"))


def test_fields_of_runs_are_options_of_a_study(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {}

    def keep(study: Any, *_: Any, **__: Any) -> None:
        fields.update(study.train)

    monkeypatch.setattr(sys.modules["tutelage.cli.study"], "_run_study", keep)
    words = ["--epochs", "1", "--lr", "0.1", "--no-augment", "--device", "cpu", "--image-size", "16"]
    assert run("study", "nine", *words, "--milestones", "0.5", "--set", "momentum=0.5") == (0, "", "")
    assert fields == {
        "epochs": 1,
        "lr": 0.1,
        "augment": False,
        "device": "cpu",
        "image_size": 16,
        "milestones": [0.5],
        "momentum": 0.5,
    }
    code, out, err = run("study", "nine", "--epochs", "many")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "epochs" in err


@pytest.mark.parametrize(
    ("words", "augment"),
    [
        (["--augment"], True),
        (["--augment", "--seeds", "2"], True),
        (["--no-augment"], False),
        (["--augment", "none"], False),
        (["--augment", "true"], True),
        (["--augment=strong"], "strong"),
        (["--augment", "standard"], "standard"),
        (["--no-compile", "--augment", "crop"], "crop"),
    ],
)
def test_augmentations_on_the_command_line(
    run: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], augment: object
) -> None:
    fields: dict[str, Any] = {}
    monkeypatch.setattr(
        sys.modules["tutelage.cli.study"], "_run_study", lambda study, *_, **__: fields.update(study.train)
    )
    assert run("study", "nine", *words) == (0, "", "")
    assert fields["augment"] == augment


def test_an_unknown_augmentation_is_one_line_with_the_known_ones(run: Command) -> None:
    code, out, err = run("train", "--augment", "wild")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "wild" in err
    assert "none, crop, standard or strong" in err


@pytest.mark.parametrize("terminal", [True, False])
def test_a_study_prints_tables_for_its_reader_and_the_answer_last(
    run: Command, monkeypatch: pytest.MonkeyPatch, write_study: Callable[..., Path], terminal: bool
) -> None:
    from tutelage.report.conclusions import summary
    from tutelage.studies.results import Results

    results = Results.read(write_study())
    monkeypatch.setattr("tutelage.studies.runner.run_study", lambda *_, **__: results)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    code, out, _ = run("study", "nine", "--out", str(results.folder))
    assert code == 0
    assert ("| plain |" in out) != terminal
    assert out.splitlines()[-3:] == list(summary(results))


@pytest.mark.parametrize("command", ["methods", "tasks", "models", "data", "data digits"])
def test_lists(run: Command, command: str) -> None:
    code, out, _ = run(*command.split())
    assert code == 0
    assert out.strip()
    code, out, _ = run(*command.split(), "--json")
    assert code == 0
    assert json.loads(out)


def test_the_page_of_a_method(run: Command) -> None:
    code, out, _ = run("methods", "at")
    assert code == 0
    assert "arXiv 1612.03928" in out
    assert "kd_alpha (number in [0, 1]; default 0)\n      combine with Hinton's loss" in out
    assert not re.search(r"Annotated|NonNegative|Literal|Args:", out)


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "study",
        "evaluate",
        "export",
        "predict",
        "calibrate",
        "push",
        "report",
        "demo",
        "data",
        "labels",
        "compress",
    ],
)
def test_help_writes_all_types_in_one_style(run: Command, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--" in out
    assert re.findall(r"^ +--[\w-]+ (?!<)\S+(?=  |$)", out, re.MULTILINE) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name the file to write: --onnx FILE"),
        (("--int8", "--packed", "p.safetensors"), "--int8 writes an ONNX file"),
        (("--packed", "p.safetensors"), "has no quantised layer"),
    ],
)
def test_export_without_a_file_or_few_bits_is_refused(
    run: Command, teacher: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run("export", str(teacher), *options)
    assert code == 2
    assert message in err
    assert not Path("p.safetensors").exists()


def test_export(run: Command, teacher: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from tutelage.data import open_data
    from tutelage.runs import open_model

    assert run("export", str(teacher), "--onnx", "student.onnx")[0] == 0
    data = open_data("digits")
    pixels = data.test.inputs[:5].permute(0, 3, 1, 2).float() / 255
    session = runtime.InferenceSession("student.onnx")
    logits = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    torch.testing.assert_close(logits, open_model(str(teacher), data).eval()(pixels).detach(), atol=1e-4, rtol=1e-4)
