"""Freed memory is reused by processes that train."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from tutelage.allocator import reuse_freed_memory
reused = sys.argv[1] == "reused" and reuse_freed_memory()
bytearray(40_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(40_000_000)
print(reused, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the C library is not glibc",
)


def page_faults(argument: str, **variables: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", PROGRAM, argument]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    reused, faults = output.split()
    return reused, int(faults)


def test_freed_memory_is_reused() -> None:
    _, default = page_faults("returned")
    reused, faults = page_faults("reused")
    assert reused == "True"
    assert default > 10 * 40_000_000 // 4096 // 2  # otherwise there is nothing to save here
    assert faults < default / 50


def test_settings_of_the_environment_have_priority() -> None:
    reused, _ = page_faults("reused", MALLOC_TRIM_THRESHOLD_="131072")
    assert reused == "False"
