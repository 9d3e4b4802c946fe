"""Evaluation on the command line: other images, weights without normalization, and extra evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.archives import save_blank_images
from tests.conftest import Command


def test_images_of_another_size_are_worth_a_warning(run: Command, teacher: Path) -> None:
    images, labels = np.zeros((20, 16, 16, 1), np.uint8), np.arange(20) % 10
    np.savez("big.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    code, _, err = run("evaluate", str(teacher), "--data", "npz:big.npz", "--json")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "pixels" in line]
    assert "images of 8 x 8 pixels and those of npz:big.npz have 16 x 16" in line
    assert "warning" not in run("evaluate", str(teacher), "--json")[2]


def test_images_of_any_shape_may_be_out_of_distribution(run: Command, teacher: Path) -> None:
    save_blank_images("rgb.npz", channels=3, classes=10)
    code, out, err = run("evaluate", str(teacher), "--ood", "npz:rgb.npz", "--json")
    assert code == 0
    assert 0 <= json.loads(out)["ood_auroc"] <= 1
    assert err == ""


def test_most_confused_classes_are_listed(run: Command, teacher: Path) -> None:
    metrics = json.loads(run("evaluate", str(teacher), "--json")[1])
    counts = metrics["confusion"]
    wrong = [
        (counts[i][j], f"{i} as {j} {counts[i][j]} of {sum(counts[i])}") for i in range(10) for j in range(10) if i != j
    ]
    count, text = max(wrong, key=lambda entry: entry[0])
    assert count > 0
    output = " ".join(run("evaluate", str(teacher))[1].replace("│", " ").split())
    assert f"most often confused {text}" in output
    assert "top5 accuracy" in output


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


def test_attacks(run: Command, teacher: Path) -> None:
    attacks = "pgd:0.1:steps=2,square:0.1:queries=3,den:step_size=0.05:extra=5:steps=40"
    options = ("--attacks", attacks, "--samples", "20")
    code, out, _ = run("evaluate", str(teacher), *options, "--json")
    assert code == 0
    evaluation = json.loads(out)
    assert list(evaluation["attacks"]) == attacks.split(",")[:2]
    assert list(evaluation["attack_measures"]) == attacks.split(",")
    code, out, _ = run("evaluate", str(teacher), *options)
    assert code == 0
    for label in ("under attack", "pgd:0.1:steps=2", "worst of all", "accuracy by l2 distance: 0 "):
        assert label in out
    assert "{" not in out
    assert "None" not in out


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
