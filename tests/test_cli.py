"""The command line: its output, its errors and its exit codes."""

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

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import Command
from tutelage.config import Config


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, made once."""
    from tutelage.runs import execute

    folder = tmp_path_factory.mktemp("runs") / "teacher"
    execute(Config(data="digits", student="resnet8", epochs=2), folder)
    return folder


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
    import shlex

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


DOORS = {
    "unknown method": ("train --method hintn", ["'hintn'", "'hinton'"]),
    "unknown model": ("train --model resnet21", ["21", "20 and 26"]),
    "unknown data": ("train --data digts", ["'digts'", "'digits'"]),
    "missing data": ("train --data npz:absent.npz", ["absent.npz"]),
    "missing config": ("train --config absent.yaml", ["absent.yaml"]),
    "mistyped field": ("train --epochs many", ["epochs", "'many'"]),
    "no epochs": ("train --epochs 0", ["epochs", "'0'"]),
    "nan": ("train --lr nan", ["lr", "nan"]),
    "bad noise": ("train --noise 1.5", ["1.5"]),
    "unknown noise": ("train --noise asymetric:0.4", ["asymetric"]),
    "unknown optimizer": ("train --optimizer SDG", ["'SDG'", "'SGD'"]),
    "unknown device": ("train --device gpu0", ["gpu0"]),
    "unknown option": ("train --epoch 3", ["--epoch"]),
    "unknown command": ("destill", ["destill"]),
    "unknown setting": ("train --method dml --set peer=3", ["'peer'", "peers"]),
    "mistyped setting": ("train --method dml --set peers=some", ["peers", "'some'"]),
    "setting out of range": ("train --method dml --set peers=1", ["peers", "1"]),
    "setting too large": ("distill --teacher {teacher} --set temperature=1.0e+308", ["temperature", "1e+308"]),
    "setting too small": ("distill --teacher {teacher} --set temperature=1.0e-308", ["temperature", "1e-308"]),
    "setting that is nested": ("distill --teacher {teacher} --set temperature=[[[[1]]]]", ["temperature"]),
    "setting twice": ("train --method dml --set peers=3 --set peers=4", ["'peers' twice"]),
    "absurd network": ("train --model resnet8x100000000", ["100000000", "too large"]),
    "setting without value": ("train --method dml --set peers", ["name=value"]),
    "no teacher": ("distill --method hinton --epochs 1", ["--teacher"]),
    "missing teacher": ("distill --teacher runs/absent", ["runs/absent"]),
    "missing module": ("train --model absent.module:Net", ["absent"]),
    "missing run": ("evaluate runs/absent --data digits", ["runs/absent"]),
    "unknown split": ("evaluate {teacher} --split tset", ["tset", "test"]),
    "radius that is no number": ("evaluate {teacher} --pgd 0.01,far", ["pgd", "'far'"]),
    "radius in levels of 255": ("evaluate {teacher} --pgd 8", ["pgd", "above 0 and at most 1", "8"]),
    "no samples to judge": ("evaluate {teacher} --corruptions --samples 0", ["samples", "0"]),
    "radius that is none": ("evaluate {teacher} --pgd abc", ["pgd", "'abc'"]),
    "samples that are no number": ("evaluate {teacher} --samples some", ["--samples", "evaluate --help"]),
    "no held-out split": ("evaluate {teacher} --split validation", ["'validation'", "test, train", "result.json"]),
    "a device without memory": ("evaluate {teacher} --device meta", ["'meta'", "--device auto"]),
    "no such run": ("evaluate runs/absent", ["no trained network 'runs/absent'", "folder of a finished run"]),
    "no run at all": ("evaluate", ["'run'", "evaluate --help"]),
    "a name in place of a run": ("evaluate resnet8", ["no trained network 'resnet8'", "MODEL@WEIGHTS"]),
    "a file in place of a folder": (
        "evaluate {teacher}/student.safetensors",
        ["is a file", "name the folder {teacher}"],
    ),
    "another file": ("evaluate {teacher}/result.json", ["is a file", "folder of a finished run"]),
    "a folder in a run": ("evaluate {teacher}/checkpoints", ["the run's folder is {teacher}"]),
    "an empty folder": ("evaluate empty", ["empty contains no student.safetensors", "finished run"]),
    "a run that is not finished": ("distill --teacher unfinished", ["unfinished contains no", "run its command again"]),
    "a folder in place of weights": ("evaluate resnet8@{teacher}", ["is a folder", "resnet8@{teacher}/student"]),
    "weights without a model": ("evaluate @{teacher}/student.safetensors", ["is incomplete", "MODEL@WEIGHTS"]),
    "a model without weights": ("distill --teacher resnet8@", ["'resnet8@' is incomplete", "MODEL@WEIGHTS"]),
    "missing weights": ("distill --teacher resnet8@absent.pt", ["'absent.pt'", "check the path"]),
    "weights of another network": (
        "evaluate resnet8x2@{teacher}/student.safetensors",
        ["do not fit", "build the model"],
    ),
    "grey in place of colour": ("evaluate {teacher} --data npz:rgb.npz", ["images of 1 channel", "have 3"]),
    "a teacher of grey images": ("distill --teacher {teacher} --data npz:rgb.npz", ["images of 1 channel", "have 3"]),
    "a teacher of other classes": ("distill --teacher {teacher} --data npz:five.npz", ["(4, 10)", "5 classes"]),
    "an option without a value": ("train --noise", ["'--noise' requires an argument", "--help"]),
    "a misspelt option": ("distill --techer t", ["--techer", "--teacher"]),
    "an argument too many": ("models resnet8", ["resnet8", "models --help"]),
    "a folder in place of a configuration": ("train --config {teacher}", ["it is a folder", "config.yaml"]),
    "a path in place of a data set": ("train --data rgb.npz", ["npz:rgb.npz"]),
    "a folder in place of a data set": ("data empty", ["folder:empty or idx:empty"]),
    "no data set": ("data ''", ["idx:FOLDER"]),
    "a tiny image size": ("data digits --image-size 0", ["--image-size", "4"]),
    "a file to cache outputs in": ("distill --teacher {teacher} --teacher-cache rgb.npz", ["rgb.npz", "name a folder"]),
    "a setting of a method that has none": ("train --set temperature=2", ["'temperature'", "There are none"]),
    "a mean without its deviation": ("distill --teacher {teacher} --teacher-mean 0.5", ["teacher_std", "both"]),
    "a normalization that is recorded": (
        "distill --teacher {teacher} --teacher-mean 0.5 --teacher-std 0.5",
        ["no effect here", "leave them out"],
    ),
    "an export of nothing": ("export runs/absent --onnx s.onnx", ["no trained network 'runs/absent'"]),
    "unknown other data": ("evaluate {teacher} --ood digts", ["'digts'", "'digits'"]),
    "batch too large a word": ("train --batch-size -3", ["batch_size", "-3"]),
}


@pytest.mark.parametrize(("command", "fragments"), DOORS.values(), ids=DOORS)
def test_a_users_mistake_is_one_clear_line_and_code_2(
    run: Command, teacher: Path, command: str, fragments: list[str]
) -> None:
    Path("empty").mkdir()
    Path("unfinished").mkdir()
    Path("unfinished/config.yaml").write_text("data: digits\n")
    _arrays("rgb.npz", channels=3, classes=10)
    _arrays("five.npz", channels=1, classes=5)
    code, _, err = run(*shlex.split(command.format(teacher=teacher)))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert err.splitlines()[-1] == errors[0]
    assert "Traceback" not in err
    for text in fragments:
        assert text.format(teacher=teacher) in errors[0]


def _arrays(file: str, *, channels: int, classes: int) -> None:
    images, labels = np.zeros((20, 8, 8, channels), np.uint8), np.arange(20) % classes
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)


def test_images_of_another_size_are_worth_a_warning(run: Command, teacher: Path) -> None:
    images, labels = np.zeros((20, 16, 16, 1), np.uint8), np.arange(20) % 10
    np.savez("big.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    code, _, err = run("evaluate", str(teacher), "--data", "npz:big.npz", "--json")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "pixels" in line]
    assert "images of 8 x 8 pixels and those of npz:big.npz have 16 x 16" in line
    assert "warning" not in run("evaluate", str(teacher), "--json")[2]


def test_images_of_any_shape_may_be_out_of_distribution(run: Command, teacher: Path) -> None:
    _arrays("rgb.npz", channels=3, classes=10)
    code, out, err = run("evaluate", str(teacher), "--ood", "npz:rgb.npz", "--json")
    assert code == 0
    assert 0 <= json.loads(out)["ood_auroc"] <= 1
    assert err == ""


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


def test_the_run_of_weights_says_on_which_data(run: Command, teacher: Path) -> None:
    by_folder = json.loads(run("evaluate", str(teacher), "--json")[1])
    by_weights = json.loads(run("evaluate", f"resnet8@{teacher / 'student.safetensors'}", "--json")[1])
    assert by_weights["accuracy"] == by_folder["accuracy"]


def test_weights_without_a_normalization_are_evaluated_with_mean_and_std(run: Command, teacher: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(teacher / "student.safetensors"), "bare.pt")
    evaluate_words = ("evaluate", "resnet8@bare.pt", "--data", "digits", "--json")
    recorded = json.loads(run("evaluate", str(teacher), "--json")[1])
    code, out, err = run(*evaluate_words)
    assert code == 0
    assert "resnet8@bare.pt: images normalized with mean 0.3" in err
    assert "(those of digits: the network records none)" in err
    assert json.loads(out)["nll"] == pytest.approx(recorded["nll"], rel=1e-3)  # of nearly the same pixels
    code, out, err = run(*evaluate_words, "--mean", "0", "--std", "1", "--teacher", str(teacher))
    assert code == 0
    assert "mean 0 and std 1 (as given)" in err
    assert json.loads(out)["nll"] != pytest.approx(recorded["nll"], rel=0.01)
    for words_of_error, fragment in (
        ("--mean 0.5", "go together"),
        ("--mean 0.5 --std 0", "std"),
        ("--mean a --std 1", "mean"),
    ):
        code, _, err = run(*evaluate_words, *words_of_error.split())
        assert code == 2
        assert fragment in err
    code, _, err = run("export", str(teacher), "--mean", "0", "--std", "1", "--onnx", "s.onnx")
    assert code == 2
    assert "no effect here: the weights record their own" in err


def test_a_teacher_is_announced_and_label_differences_are_reported(run: Command, teacher: Path) -> None:
    words = ("distill", "--teacher", str(teacher), "--epochs", "1", "--noise", "0.4", "--per-class", "20")
    code, _, err = run(*words, "--out", "a")
    assert code == 0
    assert "noise none (here 0.4)" in err
    assert f"teacher {teacher}: images normalized with mean 0.3" in err
    assert "(recorded with the weights); accuracy " in err
    assert "its run recorded" in err
    before_training = err.index("its run recorded") < err.index("epoch 1/1")
    assert before_training
    code, out, err = run(*words, "--out", "b", "--json")
    assert code == 0
    assert json.loads(out)["seed"] == 0
    assert "images normalized" not in err


@pytest.mark.parametrize("command", ["train", "distill", "evaluate", "export", "data", "methods", "tasks", "models"])
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


def test_a_config_file_with_a_wrong_name(run: Command) -> None:
    Path("run.yaml").write_text("data: digits\nepoch: 3\n")
    code, _, err = run("train", "--config", "run.yaml")
    assert code == 2
    assert "'epoch'" in err
    assert "'epochs'" in err
    Path("run.toml").write_text("data = ")
    assert run("train", "--config", "run.toml")[0] == 2
    Path("list.yaml").write_text("- 1\n- 2\n")
    assert run("train", "--config", "list.yaml")[0] == 2


def test_another_runs_folder_is_refused(run: Command, teacher: Path) -> None:
    before = {entry.name: entry.stat().st_mtime_ns for entry in teacher.iterdir() if entry.name != ".lock"}
    code, _, err = run("train", "--model", "resnet8", "--epochs", "2", "--lr", "0.2", "--out", str(teacher))
    assert code == 2
    assert "lr: 0.05 there, 0.2 here" in err
    assert before == {entry.name: entry.stat().st_mtime_ns for entry in teacher.iterdir() if entry.name != ".lock"}


def test_extra_evaluation(run: Command, teacher: Path, tiny_npz: str) -> None:
    options = ("--corruptions", "--pgd", "0.1,0.01", "--ood", tiny_npz, "--samples", "40")
    code, out, _ = run("evaluate", str(teacher), *options, "--json")
    assert code == 0
    evaluation = json.loads(out)
    assert len(evaluation["corruptions"]["jpeg"]) == 5
    assert 0 < evaluation["corruption_accuracy"] < 1
    assert list(evaluation["pgd"]) == ["0.01", "0.1"]
    assert 0 < evaluation["ood_auroc"] < 1
    code, out, _ = run("evaluate", str(teacher), *options)
    assert code == 0
    for label in ("corruption accuracy", "under gaussian blur", "accuracy by radius", "ood auroc", "aurc"):
        assert label in out
    assert "{" not in out  # nothing nested in a cell
    assert "None" not in out
    code, out, _ = run("evaluate", str(teacher))
    assert "aurc" in out
    assert not any(word in out for word in ("{", "None", "corruption", "radius", "ood"))


def test_a_finished_run_is_shown_again(run: Command, teacher: Path) -> None:
    code, out, _ = run("train", "--model", "resnet8", "--epochs", "2", "--out", str(teacher), "--json")
    assert code == 0
    assert json.loads(out)["test"] == json.loads((teacher / "result.json").read_text())["test"]


def test_a_hostile_teacher_does_not_run(run: Command, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "owned"), "w"))  # type: ignore[return-value]

    torch.save(Evil(), tmp_path / "evil.pt")
    code, _, err = run("distill", "--teacher", f"resnet8@{tmp_path / 'evil.pt'}", "--epochs", "1")
    assert code == 2
    assert "run code" in err
    assert not (tmp_path / "owned").exists()


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


@pytest.mark.parametrize("command", ["train", "study", "evaluate", "export", "report", "demo", "data", "labels"])
def test_help_writes_all_types_in_one_style(run: Command, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--" in out
    assert re.findall(r"^ +--[\w-]+ (?!<)\S+(?=  |$)", out, re.MULTILINE) == []


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
