"""What a file may unpack to: no more than fits into memory, and no more than packed data plausibly hold."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tutelage.errors import TutelageError

RATIO = 100
"""Packed data that claim to be so many times their size in the file are refused. Packed images rarely reach 20, and
DEFLATE can reach 1032, where 10 MB unpack to 10 GB. [ours]"""

PLAUSIBLE = 2**30
"""Bytes that packed data may have at any ratio. [ours]"""


def check_unpacked(claimed: int, stored: int, what: str) -> None:
    """Refuse packed data that would unpack to too much, before memory is taken for them.

    Args:
        claimed: their bytes in memory.
        stored: their bytes in the file.
        what: their name, for the error.

    Raises:
        TutelageError: they do not fit into the memory that is available; or they have more than 1 GiB and are more than
            100 times as large as in the file.
    """
    if claimed > PLAUSIBLE and claimed > RATIO * stored:
        raise TutelageError(
            f"{what} has {_size(stored)} in the file and claims {_size(claimed)} in memory, over {RATIO} times as "
            "much, which real data hardly do; if it is yours, save it uncompressed"
        )
    check_fits(claimed, f"{what} ({_size(stored)} in the file)", "use fewer samples")


def check_fits(size: int, what: str, remedy: str) -> None:
    """Refuse what would need more memory than is available.

    Args:
        size: bytes.
        what: its name, for the error.
        remedy: what the user can do about it.
    """
    available = available_memory()
    if available is not None and size > available:
        raise TutelageError(
            f"{what}: {_size(size)} of memory needed and {_size(available)} available; {remedy}, or take a machine "
            "with more memory"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take; ``None`` where the system does not tell."""
    known = []
    with suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # a container's limit
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known, default=None)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
