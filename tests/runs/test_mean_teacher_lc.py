"""The method mean_teacher_lc: loss, the average, clustering, and the resulting network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs.partly_labelled import SHORT_RECIPE, RecordingRun, average_of
from tutelage.config import Config, Hardware
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.methods.mean_teacher_lc import rise_from
from tutelage.methods.mean_teacher_lc.local_clustering import local_clustering
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.runs import execute, open_model
from tutelage.terms import View
from tutelage.training import Run
from tutelage.training.learner import ForwardPass


@pytest.fixture
def train_method(
    partly_labelled: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> Callable[..., tuple[Tapped, Run]]:
    """``trained(data=few, **settings)``: the returned network, and the run."""

    def make(data: Data = partly_labelled, **settings: Any) -> tuple[Tapped, Run]:
        run = Run(data, any_model, recipe=SHORT_RECIPE, hardware=on_cpu, seed=3)
        return find("mean_teacher_lc")(run, **settings), run

    return make


# --- the loss


@pytest.mark.parametrize(
    ("epoch", "share"), [(1, 0.040762), (2, 0.165299), (2.5, 0.286505), (4, 0.818731), (5, 1), (6, 1)]
)
def test_ramp_values(epoch: float, share: float) -> None:
    """r(2.5; 5) = exp(-5/4)."""
    assert rise_from(0, epoch / 100, 5 / 100) == pytest.approx(share, abs=1e-6)
    assert rise_from(0.6, 0.6 + epoch / 100, 5 / 100) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("progress", "consistency", "clustering"),
    [
        (0.0, 0.673795, 0),
        (0.0025, 28.650480, 0),
        (0.005, 100, 0),
        (0.6, 100, 0),
        (0.65, 100, 2.865048),
        (0.7, 100, 10),
        (0.99, 100, 10),
    ],
)
def test_weights_over_the_run(
    progress: float, consistency: float, clustering: float, recording_run: Callable[..., RecordingRun]
) -> None:
    """At e0 the weight of the clustering is still 0. Two of ten samples have labels."""
    terms = recording_run().learner.terms
    assert terms["consistency"].at(progress) == pytest.approx(0.8 * consistency, abs=1e-5)
    assert terms["consistency_labelled"].at(progress) == pytest.approx(0.2 * consistency, abs=1e-5)
    assert terms["clustering"].at(progress) == pytest.approx(clustering, abs=1e-5)
    assert terms["ce"].at(progress) == 1


def test_the_loss_by_plain_loops(recording_run: Callable[..., RecordingRun]) -> None:
    """Two labelled and eight unlabelled samples: CE over two, MSE over ten samples and four classes."""
    learner = recording_run(labelled=0.2, threshold=3.0, clustering_start=0.0).learner
    generator = torch.Generator().manual_seed(0)
    z, v, f = (torch.randn(10, size, dtype=torch.float64, generator=generator) for size in (4, 4, 3))
    targets, index = torch.tensor([1, 3, *[-1] * 8]), torch.arange(10)
    batch = Batch(torch.zeros(10, 1, 8, 8), targets, index, None)
    passes: dict[View | None, ForwardPass] = {None: ForwardPass(batch, Outputs(None), None)}
    for view in learner.views():
        rows = view(batch, Outputs(None), None).index
        passes[view] = ForwardPass(
            batch.rows(slice(int(rows[0]), int(rows[-1]) + 1)),
            Outputs(z[rows], {"embedding": f[rows]}),
            Outputs(v[rows]),
        )
    result, _ = learner.loss(passes, 0.5)
    p, q = z.softmax(1).tolist(), v.softmax(1).tolist()
    ce = -(math.log(p[0][1]) + math.log(p[1][3])) / 2
    mse = (
        sum((a - b) ** 2 for row, other_row in zip(p, q, strict=True) for a, b in zip(row, other_row, strict=True)) / 40
    )
    lc = 0.0
    for rows in (range(2), range(2, 10)):
        distances = [sum((x - y) ** 2 for x, y in zip(f[i], f[j], strict=True)) / 3 for i in rows for j in range(2, 10)]
        neighbours = [float(d) for d in distances if d <= 3]
        lc += sum(d * math.exp(-d / 3) for d in neighbours) / len(neighbours)
    assert result.item() == pytest.approx(ce + 100 * mse + 10 * lc, rel=1e-6)


def test_fully_labelled_samples_count_as_both_in_one_pass(
    tiny_data: Data, recording_run: Callable[..., RecordingRun]
) -> None:
    learner = recording_run(tiny_data, threshold=3.0, clustering_start=0.0).learner
    assert learner.views() == ()
    generator = torch.Generator().manual_seed(0)
    z, f = (torch.randn(4, size, dtype=torch.float64, generator=generator) for size in (4, 3))
    batch = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4), torch.arange(4), None)
    outputs = Outputs(z, {"embedding": f})
    _, values = learner.loss({None: ForwardPass(batch, outputs, Outputs(z))}, 0.5)
    by_term = dict(zip(learner.terms, values.tolist(), strict=True))
    assert by_term["ce"] == pytest.approx(torch.nn.functional.cross_entropy(z, batch.targets).item(), rel=1e-6)
    assert by_term["consistency"] == 0
    assert by_term["clustering"] == pytest.approx(2 * local_clustering(f, f, 3.0).item(), rel=1e-6)


# --- the average


def test_average_starts_from_own_weights_and_follows_decay(
    recording_run: Callable[..., RecordingRun], state_of: Any, changed: Any
) -> None:
    learner = recording_run(decay=0.9).learner
    source = average_of(learner)
    assert learner.deployed is source.model
    assert "module.conv1.weight" in changed(state_of(source.model), state_of(learner.model))
    before, student = state_of(source.model), dict(learner.model.named_parameters())
    source.after_step()
    for name, value in source.model.named_parameters():
        torch.testing.assert_close(value.detach(), 0.9 * before[name] + 0.1 * student[name].detach())


def test_statistics_of_average_by_buffers_setting(
    train_method: Callable[..., tuple[Tapped, Run]], state_of: Any
) -> None:
    states = {kind: state_of(train_method(buffers=kind)[0]) for kind in ("own", "average", "copy")}
    assert states["own"]["module.bn1.num_batches_tracked"] == 2 * 15
    for kind in ("own", "average"):
        reference = states["copy"]["module.bn1.running_mean"]
        assert not torch.equal(states[kind]["module.bn1.running_mean"], reference)


def test_deployed_network(train_method: Callable[..., tuple[Tapped, Run]], state_of: Any, changed: Any) -> None:
    """The average and the student come from the same training."""
    (average, first), (student, second) = train_method(deploy="average"), train_method(deploy="student")
    keys = ("ce", "consistency", "consistency_labelled", "clustering")
    histories = [[[r["learners"]["student"][k] for k in keys] for r in run.fits[0].history] for run in (first, second)]
    assert histories[0] == histories[1]
    assert changed(state_of(average), state_of(student))
    assert list(first.selected) == [average]
    assert list(second.selected) == [student]


# --- clustering


def test_clustering_has_no_effect_before_its_start(
    train_method: Callable[..., tuple[Tapped, Run]], state_of: Any, changed: Any
) -> None:
    """With a weight of 0 the method is Mean Teacher."""
    late, unclustered = train_method(clustering_start=1.0), train_method(clustering=0)
    assert changed(state_of(late[0]), state_of(unclustered[0])) == set()
    assert changed(state_of(train_method()[0]), state_of(unclustered[0]))
    assert "clustering" not in unclustered[1].fits[0].history[0]["learners"]["student"]
    values = [record["learners"]["student"]["clustering"] for record in train_method()[1].fits[0].history]
    assert values[:2] == [0, 0]  # the last step of the second of three epochs is at 0.6 itself
    assert values[2] > 0


def test_clustering_reduces_distances(partly_labelled: Data, train_method: Callable[..., tuple[Tapped, Run]]) -> None:
    spreads = []
    for weight in (0, 100):
        model, _ = train_method(
            clustering=weight, clustering_start=0.0, threshold=50.0, consistency=1.0, deploy="student"
        )
        assert isinstance(partly_labelled.train.inputs, Tensor)
        with torch.no_grad():
            f = model.eval().tap(partly_labelled.train.inputs.permute(0, 3, 1, 2) / 255, ("embedding",))["embedding"]
        spreads.append(torch.pdist(f).square().mean())
    assert spreads[1] < 0.8 * spreads[0]


# --- end to end


def test_resumes_exactly_with_unlabelled_samples(
    partly_labelled: Data,
    any_model: Callable[[], Tapped],
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    class StoppedError(Exception):
        pass

    def train(folder: Path, stop: int = 0) -> Tapped:
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        run = Run(
            partly_labelled, any_model, recipe=SHORT_RECIPE, hardware=on_cpu, seed=4, folder=folder, report=report
        )
        return find("mean_teacher_lc")(run)

    expected_state = state_of(train(tmp_path / "whole"))
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", 2)
    assert changed(expected_state, state_of(train(tmp_path / "stopped"))) == set()


def test_command_line_removes_labels(tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    config = Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="mean_teacher_lc",
        noise="missing:0.7",
        validation=0.0,
        epochs=2,
        batch_size=12,
        device="cpu",
        seed=1,
    )
    result = execute(config, tmp_path / "run")
    assert math.isfinite(result.metrics["test"]["nll"])
    assert isinstance(tiny_data.test.inputs, Tensor)
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255
    opened_model = open_model(str(tmp_path / "run"), tiny_data).eval()
    assert torch.equal(opened_model(pixels), result.model.eval()(pixels))


@pytest.mark.parametrize(
    "invalid_settings",
    [
        {"labelled": 1.5},
        {"consistency": 0},
        {"decay": 1.0},
        {"buffers": "none"},
        {"clustering": -1},
        {"threshold": 0},
        {"quantile": 0},
        {"deploy": "teacher"},
    ],
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], recording_run: Callable[..., RecordingRun], refused: Any
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        recording_run(**invalid_settings)


def test_batches_must_hold_labelled_and_unlabelled_samples(
    train_method: Callable[..., tuple[Tapped, Run]], refused: Any
) -> None:
    with refused("batch of 10 cannot hold 10 samples with a label"):
        train_method(labelled=1.0)
