"""Measurements that no client program makes: idle connections, idle servers, and how long a stop takes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

from .clients import ClientError
from .figures import Reading, percentile
from .processes import Server

FRESH = 1000
"""How many requests on new connections are timed while the idle connections are open."""

SETTLE = 2.0
"""Seconds that a server gets to become idle before it is measured."""

LONGER = 11.0
"""Seconds after which spare threads have ended: socketkit's end after ten."""

BYTES = "bytes/connection"
THREADS = "threads added"
FRESH_P99 = "fresh p99 ms"
WAKEUPS = "wake-ups/s"
STOP_P99 = "stop p99 ms"
STOP_MEDIAN = "stop median ms"


def idle_connections(number: int) -> Callable[[Server, float], Reading]:
    """Return a probe that keeps `number` connections open after one request each, and sends requests on new connections."""

    def probe(server: Server, _seconds: float) -> Reading:
        for _ in range(FRESH):
            ask_fresh(server)
        time.sleep(SETTLE)
        memory, threads = server.memory(), server.threads()
        with kept_open(server, number):
            time.sleep(LONGER)
            more, busy = server.memory() - memory, server.threads() - threads
            times = [ask_fresh(server) for _ in range(FRESH)]
        return {BYTES: more / number, THREADS: busy, FRESH_P99: percentile(times, 0.99) * 1000}

    return probe


def idle_server(server: Server, seconds: float) -> Reading:
    """Count the wake-ups of a server that has answered requests and is idle."""
    for _ in range(100):
        ask_fresh(server)
    time.sleep(SETTLE)
    before, began = server.switches(), time.monotonic()
    time.sleep(max(seconds, 5.0))
    return {WAKEUPS: (server.switches() - before) / (time.monotonic() - began)}


def stop_times(command: list[str], _seconds: float) -> Reading:
    """Run a program that stops a hundred servers and prints the duration of each stop in seconds."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if finished.returncode:
        raise ClientError(finished.stderr.strip().splitlines()[-1])
    times = [seconds * 1000 for seconds in json.loads(finished.stdout)]
    return {STOP_P99: percentile(times, 0.99), STOP_MEDIAN: percentile(times, 0.5)}


@contextlib.contextmanager
def kept_open(server: Server, number: int) -> Iterator[None]:
    """Keep `number` connections open, each after one request, inside a `with` block."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            _ask(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)))
        yield


def ask_fresh(server: Server) -> float:
    """Send one request on a new connection; return the seconds from connecting to the reply."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        _ask(connection)
    return time.monotonic() - began


def _ask(connection: socket.socket) -> None:
    connection.sendall(b"PING\r\n")
    reply = connection.recv(64)
    if reply != b"+PONG\r\n":
        raise ClientError(f"unexpected reply {reply!r}")
