"""Parking: how long connections may wait without a thread."""

from __future__ import annotations

import attrs


@attrs.frozen
class Parking:
    """How a dispatcher parks its connections.

    defer: seconds that a new connection may wait for its first byte before its handler starts anyway.
    idle: seconds that a connection may wait for its next request before it is closed; None: no limit.
    max_inline: requests that one connection may make in a row while others wait.
    """

    defer: float = 0.01
    idle: float | None = 75.0
    max_inline: int = 10
