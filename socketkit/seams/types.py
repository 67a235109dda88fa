"""The words that every seam uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

Request: TypeAlias = Any
"""A connected socket (stream), or `(data, socket)` (datagram), as in the standard library's `socketserver`."""

Clock: TypeAlias = Callable[[], float]
"""Returns seconds that only ever grow, as `time.monotonic` does. One that can be put forward, for tests, also has `follow(callback)`, and
calls back whenever that is done: see `socketkit.testing.FakeClock`."""

Address: TypeAlias = Any
"""What `accept` or `recvfrom` calls the peer: (host, port), four fields for IPv6, a path or "" or None for Unix sockets."""

Unit: TypeAlias = Callable[[], object]
"""A unit of work: calling it runs one request from verification to close, in the calling thread. It does not raise `Exception`."""

Kind: TypeAlias = Literal["stream", "datagram"]

Seconds: TypeAlias = Annotated[float, "seconds"]
"""A duration: a plain number in Python, also ``500ms``, ``30s`` or ``5m`` where a part is given as text."""
