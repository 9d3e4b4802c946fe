"""On a device that is not the processor every method gives what it gives here, and no step waits for the device."""

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
    reason="this torch cannot be told of a device by Python alone",
)
SCRIPT = Path(__file__).parents[1] / "other_device.py"


CHECKS = """
import other_device as o, torch
with o.Computes(), o.Makes(), o.watch.set(True):
    there, here = torch.randn(4, device=o.NAME), torch.randn(4)
    (there @ torch.ones(4, device=o.NAME)).exp().add_(1)
    assert not o.watch.seen
    for wrong in (lambda: there + here, lambda: torch.rand(2, device=o.NAME, generator=torch.Generator()), there.numpy):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError
    waits = (lambda: float(there.sum()), lambda: there[there > 0], there.cpu, lambda: bool((there > 0).all()),
             lambda: there.nonzero(), lambda: there[torch.tensor([1, 2])], there.tolist, lambda: here.copy_(there),
             lambda: here.to(o.NAME), lambda: torch.tensor([1.0], device=o.NAME), lambda: there.copy_(here))
    for number, wait in enumerate(waits):
        o.watch.seen.clear()
        wait()
        assert o.watch.seen, number
"""


def test_the_made_up_device_refuses_and_waits_as_a_gpu_does() -> None:
    subprocess.run([sys.executable, "-c", CHECKS], check=True, cwd=SCRIPT.parent)


@pytest.mark.timeout(600)
def test_every_method_on_another_device() -> None:
    asked = [*installed(), "hinton+cache"]
    done = subprocess.run([sys.executable, SCRIPT, *asked], capture_output=True, text=True, check=False)
    told = {line["method"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(told) == asked, done.stderr
    assert {method: line["error"] for method, line in told.items() if line["error"]} == {}
    assert {method: line["waits"] for method, line in told.items() if line["waits"]} == {}
    assert {method: line["apart"] for method, line in told.items() if line["apart"] > 1e-6} == {}
