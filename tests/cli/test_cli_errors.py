"""Errors on the command line: one line that names the remedy, and exit code 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from tests.cli.archives import save_blank_images
from tests.conftest import Command

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
    "unknown attack": ("evaluate {teacher} --attacks pdg:0.1", ["unknown attack 'pdg'", "pgd"]),
    "attack without a radius": ("evaluate {teacher} --attacks pgd", ["needs a radius", "pgd:0.03"]),
    "attack with an unknown setting": ("evaluate {teacher} --attacks pgd:0.1:step=3", ["'step'", "steps"]),
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
    save_blank_images("rgb.npz", channels=3, classes=10)
    save_blank_images("five.npz", channels=1, classes=5)
    code, _, err = run(*shlex.split(command.format(teacher=teacher)))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert err.splitlines()[-1] == errors[0]
    assert "Traceback" not in err
    for text in fragments:
        assert text.format(teacher=teacher) in errors[0]


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


def test_a_hostile_teacher_does_not_run(run: Command, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "owned"), "w"))  # type: ignore[return-value]

    torch.save(Evil(), tmp_path / "evil.pt")
    code, _, err = run("distill", "--teacher", f"resnet8@{tmp_path / 'evil.pt'}", "--epochs", "1")
    assert code == 2
    assert "run code" in err
    assert not (tmp_path / "owned").exists()
