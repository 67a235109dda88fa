"""The options of dispatchers whose connections wait without a thread."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, ClassVar

import attrs

from socketkit.seams import Seconds
from socketkit.seams.parking import Parking
from socketkit.seams.validators import at_least, seconds, seconds_or_none


def own_first(_recipe: type, fields: Iterable[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Have attrs put a recipe's own options before those of its base, in its repr and wherever they are listed."""
    return sorted(fields, key=attrgetter("inherited"))


@attrs.frozen
class ParkingOptions:
    """Base of recipes whose connections occupy no thread before their first byte arrives or between requests."""

    defer: Seconds = attrs.field(default=0.01, kw_only=True, validator=seconds)
    """How long to wait for a new connection's first byte before its handler starts anyway."""
    idle: Seconds | None = attrs.field(default=75.0, kw_only=True, validator=seconds_or_none)
    """How long a conversation may stay idle between requests before it is closed; None: forever."""
    max_inline: int = attrs.field(default=10, kw_only=True, validator=at_least(1))
    """Most requests that one conversation may make in a row while others wait."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    @property
    def parking(self) -> Parking:
        return Parking(self.defer, self.idle, self.max_inline)
