"""Several conditions on the data of one run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.config import Config
from tutelage.data import (
    MissingLabels,
)
from tutelage.data.configured import load_data


def test_run_applies_imbalance_subset_noise_and_hold_out_in_this_order():
    data = load_data(Config(imbalance="longtail:0.5", per_class=40, noise="pair:0.5", validation=0.25, seed=3))
    assert [entry.get("condition", "hold_out") for entry in data.record[-4:]] == [
        "LongTail",
        "Subset",
        "PairFlip",
        "hold_out",
    ]
    assert len(data.train) == 300
    clean = torch.cat([data.train.clean_labels, data.validation.clean_labels])
    assert torch.bincount(clean).tolist() == [40] * 10
    assert data.validation.corrupted.any()


def test_human_labels_are_applied_before_sample_selection(tmp_path):
    full = load_data(Config(validation=0.0)).train
    human_labels = (full.labels + (torch.arange(len(full)) % 3 == 0)) % 10
    np.savetxt(tmp_path / "people.csv", human_labels[:, None], fmt="%d", header="mine", comments="")
    settings = {"noise": f"human:{tmp_path / 'people.csv'}:mine", "imbalance": "longtail:0.1", "validation": 0.0}
    data = load_data(Config(**settings))
    assert [entry.get("condition") for entry in data.record[-2:]] == ["HumanLabels", "LongTail"]
    assert torch.equal(data.train.labels, human_labels[data.train.index])
    assert torch.equal(data.train.clean_labels, full.labels[data.train.index])
    assert torch.bincount(data.train.clean_labels).tolist() == data.record[-1]["class_counts"]
    rare = load_data(Config(imbalance="longtail:0.1", validation=0.0))
    assert torch.equal(data.train.index, rare.train.index)


def test_noises_are_applied_from_left_to_right_and_recorded_separately():
    combined = load_data(Config(noise="0.4+missing:0.5", validation=0.0, seed=3))
    noisy_only = load_data(Config(noise="0.4", validation=0.0, seed=3))
    first, second = combined.record[-2:]
    assert first == noisy_only.record[-1]
    assert (second["condition"], second["labelled"]) == ("MissingLabels", len(combined.train))
    assert second == MissingLabels(0.5, 3)(noisy_only).record[-1]
    labelled = combined.train.labels >= 0
    assert 0.4 < labelled.float().mean() < 0.6
    assert torch.equal(combined.train.labels[labelled], noisy_only.train.labels[labelled])
    assert torch.equal(combined.train.clean_labels, noisy_only.train.clean_labels)
    other = load_data(Config(noise="missing:0.5+0.4", validation=0.0, seed=3))
    assert (
        other.record[-1]["labelled"] == (other.train.labels >= 0).sum()
    )  # only labelled samples can have wrong labels


def test_only_human_labels_among_several_noises_precede_sample_selection(tmp_path):
    full = load_data(Config(validation=0.0)).train
    human_labels = (full.labels + (torch.arange(len(full)) % 3 == 0)) % 10
    np.savetxt(tmp_path / "people.csv", human_labels[:, None], fmt="%d", header="mine", comments="")
    noise = f"human:{tmp_path / 'people.csv'}:mine+missing:0.5"
    data = load_data(Config(noise=noise, imbalance="longtail:0.1", per_class=5, validation=0.0))
    names = [entry.get("condition") for entry in data.record[-4:]]
    assert names == ["HumanLabels", "LongTail", "Subset", "MissingLabels"]
    assert data.record[-1]["labelled"] == len(data.train)
    labelled = data.train.labels >= 0
    assert torch.equal(data.train.labels[labelled], human_labels[data.train.index][labelled])


def test_run_with_few_labels_trains(tmp_path):
    from tutelage import train

    result = train("resnet8x0.25", "digits", noise="missing:0.5", imbalance="step:0.5:0.5", epochs=1, device="cpu")
    noise = result.metrics["data"]["record"][-2]
    assert noise["condition"] == "MissingLabels"
    assert result.metrics["train"]["wrong_labels"] == 0
    assert 0.3 < noise["realised_rate"] < 0.7


def test_imbalance_applies_to_data_opened_by_name(make_data, refused):
    from tutelage import train

    with refused("imbalance", "opened by name", "apply them to the Data first"):
        train("resnet8x0.25", make_data(), imbalance="longtail:0.1")


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("--imbalance powerlow:0.2", ["error: unknown imbalance 'powerlow'", "did you mean 'powerlaw'"]),
        ("--noise pear:0.2", ["error: unknown noise 'pear'", "did you mean 'pair'"]),
        ("--noise human:nowhere.npz:worst", ["error: cannot read nowhere.npz"]),
    ],
)
def test_command_line_accepts_condition_strings(words, pieces, monkeypatch, capsys):
    from tutelage.cli import main

    monkeypatch.setattr("sys.argv", ["tutelage", "train", *words.split(), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(piece in message for piece in pieces)
