"""A proxy that injects faults into connections between a client and a server. It runs in one thread, on loopback.

Each kind of fault is a small frozen recipe for one direction. Several can be combined.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from typing import Any, Literal, Self, TypeAlias

import attrs

from socketkit.seams import Address, Seconds, Wakeup, validators

Side: TypeAlias = Literal["server", "client"]

CHUNK = 65536
"""Bytes that the proxy reads at once, and about the most that it buffers for one direction."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger; source: socket(7), SO_LINGER


@attrs.frozen
class _Directed:
    to: Side = attrs.field(default="client", kw_only=True, validator=attrs.validators.in_(("server", "client")))
    """Which direction is affected: bytes going to the client, or bytes going to the server."""


@attrs.frozen
class _Ending(_Directed):
    at: int = attrs.field(default=0, validator=validators.at_least(0))
    """How many bytes pass in that direction before the fault; those still arrive."""


@attrs.frozen
class Delay(_Directed):
    """Every byte in that direction arrives `seconds` later."""

    seconds: Seconds = attrs.field(validator=validators.seconds)


@attrs.frozen
class Drip(_Directed):
    """Bytes in that direction arrive `size` at a time, one piece every `interval` seconds."""

    size: int = attrs.field(default=1, validator=validators.at_least(1))
    interval: Seconds = attrs.field(default=0.01, validator=validators.seconds)


@attrs.frozen
class Cut(_Ending):
    """After `at` bytes the connection is closed, and both sides read its end."""


@attrs.frozen
class Reset(_Ending):
    """After `at` bytes the connection is reset: both sides get ECONNRESET, or an early end on a Unix socket."""


@attrs.frozen
class HalfClose(_Ending):
    """After `at` bytes their receiver reads the end; the other direction stays open."""


@attrs.frozen
class Blackhole(_Directed):
    """Bytes in that direction are never read: none arrive, and the sender blocks once the buffers are full."""


Spoiler: TypeAlias = Delay | Drip | Cut | Reset | HalfClose | Blackhole
_End: TypeAlias = Literal["end", "cut", "reset"]


class ChaosProxy:
    r"""A proxy that opens a connection to `target` for each one it accepts, and forwards bytes both ways with the given faults.

    Args:
        target: the server's address: (host, port), or a path (``"\0name"``: an abstract one).
        spoilers: `Delay`, `Drip`, `Cut`, `Reset`, `HalfClose`, `Blackhole`; by default they affect bytes going to the client.
        listen: where clients connect; by default any free port of 127.0.0.1. For a Unix socket, a path, which is not removed.

    It serves from construction until `close` or the end of a ``with`` block, and then leaves nothing behind.
    """

    def __init__(self, target: Address, *spoilers: Spoiler, listen: Address = ("127.0.0.1", 0)) -> None:
        self._target = target
        self._spoilers = spoilers
        self._listener = socket.socket(_family(listen))
        try:
            self._listener.bind(listen)
            self._listener.listen(1024)
            self._listener.setblocking(False)
        except BaseException:
            self._listener.close()
            raise
        self.address: Address = self._listener.getsockname()
        self.accepted = 0
        self._closing = False
        self._pairs: set[_Pair] = set()
        self._timed: set[_Pair] = set()  # those with pieces that are due at some moment
        self._wakeup = Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="socketkit-chaos", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the listener and every connection, and wait for the thread to end. May be called repeatedly."""
        self._closing = True
        self._wakeup.wake()
        self._thread.join()
        self._wakeup.close()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._pairs:  # neither the wakeup nor a pair that has just ended
                        self._go_on(key.data, key.fileobj)
                for pair in list(self._timed):
                    self._go_on(pair)
        finally:
            for pair in list(self._pairs):
                self._forget(pair)
            self._selector.close()
            self._listener.close()

    def _patience(self) -> float | None:
        return max(0.0, min(pair.due() for pair in self._timed) - time.monotonic()) if self._timed else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        server = socket.socket(_family(self._target))
        for end in (client, server):
            end.setblocking(False)
        pair = _Pair(client, server, self._spoilers)
        server.connect_ex(self._target)  # an error surfaces on first use
        self._pairs.add(pair)
        self._go_on(pair)

    def _go_on(self, pair: _Pair, readable: Any = None) -> None:
        if pair.step(readable):
            self._watch(pair)
        else:
            self._forget(pair)

    def _watch(self, pair: _Pair) -> None:
        """Register the events that this pair waits for with the selector."""
        for end in pair.ends:
            events = pair.events(end)
            known = self._selector.get_map().get(end)
            before = known.events if known is not None else 0
            if before and events != before:
                self._selector.unregister(end)
            if events and events != before:
                self._selector.register(end, events, pair)
        (self._timed.discard if pair.due() == math.inf else self._timed.add)(pair)

    def _forget(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        self._timed.discard(pair)
        for end in pair.ends:
            with contextlib.suppress(KeyError):  # it waits for nothing
                self._selector.unregister(end)
            end.close()


class _Pair:
    """A client's connection and its connection to the server, with a flow in each direction."""

    def __init__(self, client: socket.socket, server: socket.socket, spoilers: tuple[Spoiler, ...]) -> None:
        self.ends = (client, server)
        to_client = [spoiler for spoiler in spoilers if spoiler.to == "client"]
        to_server = [spoiler for spoiler in spoilers if spoiler.to == "server"]
        self.flows = (_Flow(server, client, to_client), _Flow(client, server, to_server))

    def events(self, end: socket.socket) -> int:
        reads = any(flow.source is end and flow.wants_more() for flow in self.flows)
        writes = any(flow.sink is end and flow.stuck for flow in self.flows)
        return (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if writes else 0)

    def due(self) -> float:
        return min(flow.due() for flow in self.flows)

    def step(self, readable: Any) -> bool:
        """Forward what can be forwarded; return whether the connection continues."""
        try:
            for flow in self.flows:
                if flow.source is readable and flow.wants_more():
                    flow.read()
                match flow.write():
                    case "cut":
                        self._read_away()
                        return False
                    case "reset":
                        self._reset()
                        return False
        except OSError:  # one end failed: reset both
            self._reset()
            return False
        return not all(flow.over for flow in self.flows)

    def _reset(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _read_away(self) -> None:
        """Read both ends empty: closing one with unread bytes would reset its connection. Source: RFC 2525, 2.17."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                while end.recv(CHUNK):
                    pass


class _Flow:
    """One direction: the pieces read and not yet written, each with its due time."""

    def __init__(self, source: socket.socket, sink: socket.socket, spoilers: list[Spoiler]) -> None:
        self.source, self.sink = source, sink
        self.over = False  # the end was passed on to the sink
        self.stuck = False  # the sink's buffer is full
        self._queue: deque[tuple[float, bytes | _End]] = deque()
        self._held = 0
        self._last = 0.0  # when the last piece in the queue is due
        self._done = False  # nothing more is read
        self._delay, self._size, self._interval = 0.0, CHUNK, 0.0
        self._left = sys.maxsize
        self._end: _End = "end"
        for spoiler in spoilers:
            match spoiler:
                case Delay(seconds=seconds):
                    self._delay = seconds
                case Drip(size=size, interval=interval):
                    self._size, self._interval = size, interval
                case Blackhole():
                    self._done = True
                case Cut(at=at):
                    self._left, self._end = at, "cut"
                case Reset(at=at):
                    self._left, self._end = at, "reset"
                case HalfClose(at=at):
                    self._left = at
        if self._left == 0:
            self._put(self._end)

    def wants_more(self) -> bool:
        return not self._done and self._held < CHUNK

    def read(self) -> None:
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._put("end")
            return
        data = data[: self._left]
        self._left -= len(data)
        for start in range(0, len(data), self._size):
            self._put(data[start : start + self._size])
        if self._left == 0:
            self._put(self._end)

    def _put(self, piece: bytes | _End) -> None:
        moment = max(time.monotonic() + self._delay, self._last + self._interval)
        self._last = moment
        self._queue.append((moment, piece))
        if isinstance(piece, bytes):
            self._held += len(piece)
        else:
            self._done = True

    def due(self) -> float:
        return self._queue[0][0] if self._queue and not self.stuck else math.inf

    def write(self) -> _End | None:
        """Write the pieces that are due; return how the flow ended, or None if it goes on."""
        self.stuck = False
        while self._queue and self._queue[0][0] <= time.monotonic():
            moment, piece = self._queue[0]
            if not isinstance(piece, bytes):
                self._queue.popleft()
                self.over = True
                if piece == "end":
                    self.sink.shutdown(socket.SHUT_WR)
                return piece
            try:
                sent = self.sink.send(piece)
            except BlockingIOError:
                self.stuck = True
                return None
            self._held -= sent
            if sent == len(piece):
                self._queue.popleft()
            else:
                self._queue[0] = (moment, piece[sent:])
        return None


def _family(address: Address) -> int:
    if isinstance(address, str | bytes):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET
