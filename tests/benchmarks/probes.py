"""Measurements that no client program makes: idle connections, idle servers, and how long a stop takes."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator

from .clients import ClientError
from .figures import Reading, percentile
from .processes import Server
from .tools import certificate

FRESH = 1000
"""How many requests on new connections are timed while the idle connections are open."""

PATIENCE = 30.0
"""Seconds that a client waits for a reply."""

SETTLE = 2.0
"""Seconds that a server gets to become idle before it is measured."""

LONGER = 11.0
"""Seconds after which spare threads have ended: socketkit's end after ten."""

BYTES = "bytes/connection"
THREADS = "threads added"
FRESH_P99 = "fresh p99 ms"
FRESH_ALONE = "fresh p99 ms alone"
FRESH_ADDED = "fresh p99 ms added"
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


def silent_clients(number: int) -> Callable[[Server, float], Reading]:
    """Return a probe that connects `number` clients which never begin their handshakes, and sends requests on new connections.

    A request is timed from connecting to the reply, with the handshake.
    """

    def probe(server: Server, _seconds: float) -> Reading:
        context = ssl.create_default_context(cafile=certificate())
        _fresh_p99(server, context)  # warm-up
        alone = _fresh_p99(server, context)
        time.sleep(SETTLE)
        memory, threads = server.memory(), server.threads()
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(_connected(server)) for _ in range(number)]
            time.sleep(SETTLE)
            more, busy = server.memory() - memory, server.threads() - threads
            beside = _fresh_p99(server, context)
            gone = _readable(silent)
        if gone:
            raise ClientError(f"{gone} of the silent clients were disconnected during the measurement")
        return {BYTES: more / number, THREADS: busy, FRESH_ALONE: alone, FRESH_P99: beside, FRESH_ADDED: beside - alone}

    return probe


def _fresh_p99(server: Server, context: ssl.SSLContext) -> float:
    """Return the 99th percentile of `ask_fresh` in milliseconds. Raises: ClientError if there is no answer."""
    try:
        return percentile([ask_fresh(server, context) for _ in range(FRESH)], 0.99) * 1000
    except TimeoutError as error:
        raise ClientError(f"no reply within {PATIENCE:g} s") from error


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
            _ask(stack.enter_context(_connected(server)))
        yield


def ask_fresh(server: Server, context: ssl.SSLContext | None = None) -> float:
    """Send one request on a new connection, with TLS if there is a context; return the seconds from connecting to the reply."""
    began = time.monotonic()
    with _connected(server) as connection:
        if context is None:
            _ask(connection)
        else:
            with context.wrap_socket(connection, server_hostname="localhost") as encrypted:
                _ask(encrypted)
    return time.monotonic() - began


def _readable(connections: Iterable[socket.socket]) -> int:
    """Return how many of the connections have something to read, such as their end."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))


def _connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def _ask(connection: socket.socket) -> None:
    connection.sendall(b"PING\r\n")
    reply = connection.recv(64)
    if reply != b"+PONG\r\n":
        raise ClientError(f"unexpected reply {reply!r}")
