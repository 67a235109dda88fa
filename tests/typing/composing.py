"""Composed servers, as a type checker sees them. Checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

from socketkit import (
    TCP,
    UDP,
    BaseRequestHandler,
    Classic,
    DrainReport,
    Forks,
    Graceful,
    Server,
    Stats,
    StreamRequestHandler,
    Sync,
    Threads,
    UnixDatagram,
    UnixStream,
    compose,
)
from socketkit.composition.explanation import Explanation
from socketkit.seams import Dispatcher, Lifecycle, State, Transport


class Upper(StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def function(request: object, client_address: object, server: object) -> str:
    return f"{request} {client_address} {server}"


class Counting(Server):
    """A subclass keeps its own type."""

    requests = 0


# Every built-in recipe fits its seam.
transports: list[Transport] = [TCP("", 0), UDP("", 0), UnixStream("@a"), UnixDatagram("@a")]
dispatchers: list[Dispatcher] = [Sync(), Threads(), Forks()]
lifecycles: list[Lifecycle] = [Classic(), Graceful()]

# Every way to say what a server is made of.
server = assert_type(Server(TCP("127.0.0.1", 9999), Upper), Server)
Server("tcp://127.0.0.1:9999", Upper, dispatcher="thread", lifecycle="graceful:drain=10")
Server(["tcp://127.0.0.1:53", UDP("127.0.0.1", 53)], function, dispatcher=Forks(max_children=8), lifecycle=Graceful(drain=None))
Server(TCP("127.0.0.1", 9999), "myapp:Echo")
Server(TCP("127.0.0.1", 9999), Upper, lifecycle=Graceful(10, signals=False), observers=[object()])
assert_type(compose({"listen": "tcp://127.0.0.1:9999", "handler": "myapp:Echo"}), Server)

# What a server says.
assert_type(server.start(), Server)
assert_type(Counting(TCP("", 0), BaseRequestHandler).start(), Counting)
assert_type(server.stop(), DrainReport | None)
assert_type(server.stop(drain=1.5, wait=False), DrainReport | None)
assert_type(server.urls, list[str])
assert_type(server.stats(), Stats)
assert_type(server.stats().accepted, int)
assert_type(server.explain(), Explanation)
assert_type(server.state, State)
with Counting(TCP("", 0), Upper) as counting:
    assert_type(counting, Counting)

# What is refused before it runs.
Server(9999, Upper)  # type: ignore[arg-type]
Server(TCP("127.0.0.1", 9999))  # type: ignore[call-arg]
Server(TCP("127.0.0.1", 9999), Upper, Threads())  # type: ignore[call-arg]
Server(TCP("127.0.0.1", 9999), Upper, dispatcher=Graceful())  # type: ignore[arg-type]
Server(TCP("127.0.0.1", 9999), Upper, lifecycle=Threads())  # type: ignore[arg-type]
TCP("127.0.0.1", 9999).port = 80  # type: ignore[misc]
TCP("127.0.0.1", 9999, 5)  # type: ignore[call-arg]
