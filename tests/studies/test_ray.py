"""A study on a cluster of two Ray nodes on this machine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import InlineWorkers, RayWorkers

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

pytestmark = [pytest.mark.timeout(280), pytest.mark.filterwarnings("ignore:::ray")]

ONCE = """
import os, pathlib
from torch import nn
from tutelage.models.networks.resnet import ResNet

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = ResNet(8, num_classes, in_channels, width=0.25)

    def forward(self, x):
        mark = pathlib.Path({mark!r})
        if self.training and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return self.body(x)
"""


@pytest.fixture
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster_of_test = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster_of_test.add_node(num_cpus=1, include_dashboard=False)
        cluster_of_test.wait_for_nodes()
        yield cluster_of_test.address
        cluster_of_test.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_two_machines_measure_the_same_and_survive_a_killed_process(
    cluster: str, tiny_npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_of_ray.py").write_text(ONCE.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    study = Study(
        data=tiny_npz,
        students="net_of_ray:Net",
        teachers="resnet8x0.25",
        methods="hinton",
        seeds=2,
        train={"epochs": 5, "batch_size": 8, "lr": 0.1, "device": "cpu"},
    )
    results = run_study(study, tmp_path / "ray", workers=RayWorkers(cluster))
    assert (tmp_path / "mark").exists()  # a process was killed, and its run done by another
    assert {record["status"] for record in results.runs} == {"done"}
    assert not ray.is_initialized()

    inline = run_study(study, tmp_path / "inline", workers=InlineWorkers())
    for expected, record in zip(inline.runs, results.runs, strict=True):
        assert json.dumps(record["nll"]) == json.dumps(expected["nll"])
