"""Every method computes the same on a simulated device as on the CPU, and no step waits for the device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from tutelage.methods import installed

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch cannot register a device from Python",
)
ROOT = Path(__file__).parents[2]


CHECKS = """
import torch
from tests import other_device as o
with o.ComputeMode(), o.CreationMode(), o.watch.set(True):
    remote, local = torch.randn(4, device=o.NAME), torch.randn(4)
    (remote @ torch.ones(4, device=o.NAME)).exp().add_(1)
    assert not o.watch.seen
    for invalid in (lambda: remote + local, remote.numpy,
                    lambda: torch.rand(2, device=o.NAME, generator=torch.Generator())):
        try:
            invalid()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError
    waits = (lambda: float(remote.sum()), lambda: remote[remote > 0], remote.cpu, lambda: bool((remote > 0).all()),
             lambda: remote.nonzero(), lambda: remote[torch.tensor([1, 2])], remote.tolist, lambda: local.copy_(remote),
             lambda: local.to(o.NAME), lambda: torch.tensor([1.0], device=o.NAME), lambda: remote.copy_(local))
    for number, wait in enumerate(waits):
        o.watch.seen.clear()
        wait()
        assert o.watch.seen, number
"""


def test_simulated_device_refuses_and_waits_like_a_gpu() -> None:
    subprocess.run([sys.executable, "-c", CHECKS], check=True, cwd=ROOT)


@pytest.mark.timeout(600)
def test_every_method_on_the_simulated_device() -> None:
    methods = [*installed(), "hinton+cache"]
    process = subprocess.run(
        [sys.executable, "-m", "tests.other_device", *methods], cwd=ROOT, capture_output=True, text=True, check=False
    )
    results = {line["method"]: line for line in map(json.loads, process.stdout.splitlines())}
    assert list(results) == methods, process.stderr
    assert {method: line["error"] for method, line in results.items() if line["error"]} == {}
    assert {method: line["waits"] for method, line in results.items() if line["waits"]} == {}
    assert {method: line["difference"] for method, line in results.items() if line["difference"] > 1e-6} == {}
