"""Limits on the unpacked size of files: the available memory, and a plausible compression ratio."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tutelage.errors import TutelageError

RATIO = 100
"""Refuse compressed data that claim to be more than so many times as large as in the file. Compressed images rarely
reach 20; DEFLATE can reach 1032, where 10 MB unpack to 10 GB. [ours]"""

PLAUSIBLE = 2**30
"""Bytes that compressed data may unpack to at any ratio. [ours]"""


def check_unpacked(claimed: int, stored: int, what: str) -> None:
    """Refuse compressed data that would unpack to too much, before memory is allocated.

    Args:
        claimed: the size in memory, in bytes.
        stored: the size in the file, in bytes.
        what: the name of the data in the error message.

    Raises:
        TutelageError: they do not fit into the available memory; or they exceed 1 GiB and are more than 100 times as
            large as in the file.
    """
    if claimed > PLAUSIBLE and claimed > RATIO * stored:
        raise TutelageError(
            f"{what} has {_size(stored)} in the file and claims {_size(claimed)} in memory, over {RATIO} times as "
            "much, which real data hardly do; if it is yours, save it uncompressed"
        )
    check_fits(claimed, f"{what} ({_size(stored)} in the file)", "use fewer samples")


def check_fits(size: int, what: str, remedy: str) -> None:
    """Refuse data that need more memory than is available.

    Args:
        size: bytes.
        what: the name of the data in the error message.
        remedy: what the user can do about it.
    """
    available = available_memory()
    if available is not None and size > available:
        raise TutelageError(
            f"{what}: {_size(size)} of memory needed and {_size(available)} available; {remedy}, or take a machine "
            "with more memory"
        )


def available_memory() -> int | None:
    """Bytes that this process can still allocate; ``None`` if the system does not say."""
    limits = []
    with suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # a container's limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
