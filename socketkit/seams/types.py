"""The types that all seams share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

Request: TypeAlias = Any
"""A connected socket (stream), or `(data, socket)` (datagram), as in the standard library's `socketserver`."""

Clock: TypeAlias = Callable[[], float]
"""Returns seconds that never decrease, as `time.monotonic` does. A clock for tests that can be moved forward also has `follow(callback)`,
and calls `callback` on each move: see `socketkit.testing.FakeClock`."""

Address: TypeAlias = Any
"""Peer address from `accept` or `recvfrom`: (host, port); four fields for IPv6; a path, "" or None for Unix sockets."""

Unit: TypeAlias = Callable[[], object]
"""A unit of work: calling it runs one request in the calling thread, from verification to close. Raises no `Exception`."""

Kind: TypeAlias = Literal["stream", "datagram"]

Seconds: TypeAlias = Annotated[float, "seconds"]
"""A duration in seconds: a number in Python; where a part is given as text, also ``500ms``, ``30s`` or ``5m``."""
