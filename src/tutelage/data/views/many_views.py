"""Views whose random numbers depend on their number, so that there are as many as anyone needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from tutelage.errors import TutelageError

COUNT = 2**20


@dataclass(frozen=True, slots=True)
class ManyViews:
    """About a million views of each sample, of which view 0 is the sample itself; the base class of random views.

    Attributes:
        limit: use only the first ``limit`` views, so that fewer teacher outputs have to be cached. ``None`` means all.
    """

    limit: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise TutelageError(f"the limit of views must be 1 or more, got {self.limit}")

    @property
    def count(self) -> int:
        """The number of views of each sample."""
        return COUNT if self.limit is None else min(self.limit, COUNT)

    @property
    def identity(self) -> int:
        """The number of the view that is the sample itself."""
        return 0

    def limited(self, count: int) -> Self:
        """The first ``count`` of these views."""
        return replace(self, limit=count)

    def plain_fields(self) -> dict[str, Any]:
        """The fields as plain values, the limit last: fingerprints of data depend on the order."""
        values = asdict(self)
        limit = values.pop("limit")
        return {**values, "limit": limit}
