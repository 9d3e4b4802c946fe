"""Fixtures of the tests of networks."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from tests.models.branching import EXAMPLE, NETWORKS, BranchedNetwork
from tests.models.loading import USER_CODE, FakeTimm
from tutelage.models.networks.resnet import ResNet
from tutelage.models.surgery.branch import apply


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on sys.path; each test has another name."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> FakeTimm:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


@pytest.fixture(params=list(NETWORKS))
def branched_network(request: pytest.FixtureRequest) -> BranchedNetwork:
    """A network of three branches, three plain networks with one trunk, the last shared layer, the sharing rule."""
    make, at, prefixes = NETWORKS[request.param]
    torch.manual_seed(2)
    plain = [make() for _ in range(3)]

    def shared(name: str) -> bool:
        return name.startswith(prefixes)

    trunk = {name: value for name, value in plain[0].state_dict().items() if shared(name)}
    expected = copy.deepcopy(plain)
    for network in expected[1:]:
        network.load_state_dict(network.state_dict() | trunk)
    return apply(plain[0], EXAMPLE, at=at, branches=3, others=plain[1:]), expected, at, shared


@pytest.fixture
def network() -> ResNet:
    torch.manual_seed(0)
    network = ResNet(8)
    network(torch.rand(4, 3, 8, 8))  # updates the running statistics
    return network


@pytest.fixture
def other() -> ResNet:
    torch.manual_seed(1)
    return ResNet(8)
