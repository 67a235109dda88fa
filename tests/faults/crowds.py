"""Thousands of clients: idle ones that cost almost nothing, and slow ones that do not affect others.

``python -m faults.crowds PORT SIZE INTERVAL PATIENCE`` runs a crowd of slow clients; see `slow`.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time

from benchmarks.figures import percentile
from benchmarks.probes import ask_fresh, kept_open
from benchmarks.processes import Server, raise_limits
from faults.lab import Figure
from helpers.support import TESTS
from socketkit.testing.programs import with_path

PROGRAMS = {
    "adaptive": ("conversation", "adaptive"),
    "pool": ("conversation", "pool:8"),
    "adaptive, messages": ("messages", "adaptive"),
    "pool, messages": ("messages", "pool:8"),
    "asyncio": ("awaited", "asyncio"),
    "adaptive, a thread each": ("plain", "adaptive"),
    "thread": ("plain", "thread"),
}
"""Handler and dispatcher. "A thread each": with handlers that read for themselves, each connection holds a thread."""

BRIEF = 1000
"""With fewer clients than this, a measurement runs for a shorter time and sends fewer requests."""

EARLY = 0.1
"""Seconds by which a client may overestimate how early it was disconnected: the server starts its clock before the client does."""


def program(subject: str, *more: str) -> list[str]:
    """Return the command of the server that this figure measures."""
    return [sys.executable, "-m", "tests.faults.served", *PROGRAMS[subject], *more]


def idle(subject: str, size: int) -> Figure:
    """Keep many idle connections open, send fresh requests on new connections, then stop. Measures what the idle connections cost."""
    fresh, settle, watch = (100, 0.2, 1.0) if size < BRIEF else (1000, 11.0, 10.0)  # spare threads end after ten seconds
    raise_limits()
    with Server(program(subject)) as server:
        for _ in range(fresh):
            ask_fresh(server)
        time.sleep(settle)
        memory, threads = server.memory(), server.threads()
        with kept_open(server, size):
            time.sleep(settle)
            used, began = server.cpu(), time.monotonic()
            time.sleep(watch)
            busy = (server.cpu() - used) / (time.monotonic() - began)
            more, hired = server.memory() - memory, server.threads() - threads
            times = [ask_fresh(server) for _ in range(fresh)]
            stop = server.stop()
    return {
        "connections": size,
        "bytes/connection": round(more / size),
        "threads added": max(0, hired),
        "% of one processor": round(busy * 100, 2),
        "fresh p99 ms": round(percentile(times, 0.99) * 1000, 1),
        "stop ms": round(stop * 1000, 1),
    }


def slow(subject: str, size: int) -> Figure:
    """Run many clients that send nothing, or a byte at intervals. Measures the effect on others, and when they are disconnected."""
    brief = size < BRIEF
    fresh, first_byte, request, interval = (100, 0.5, 1.0, 0.2) if brief else (1000, 5.0, 10.0, 1.0)
    raise_limits()
    with Server(program(subject, f"first_byte={first_byte}s,request={request}s")) as server:
        for _ in range(fresh):  # warm-up
            ask_fresh(server)
        before = [ask_fresh(server) for _ in range(fresh)]
        command = [sys.executable, "-m", "faults.crowds", str(server.port), str(size), str(interval), str(request + 3)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=with_path(TESTS)) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "all are connected\n"
            during, end = [], time.monotonic() + first_byte / 2
            while time.monotonic() < end:
                during.append(ask_fresh(server))
            silent, drips = json.loads(crowd.stdout.readline())
    return {
        "clients": size,
        "fresh requests": len(during),
        "fresh p99 ms added": round((percentile(during, 0.99) - percentile(before, 0.99)) * 1000, 1),
        "disconnected early": sum(each < first_byte - EARLY for each in silent) + sum(each < request - EARLY for each in drips),
        "disconnected late, ms": round(max(0.0, max(silent) - first_byte, max(drips) - request) * 1000),
    }


class Slow:
    """A client that sends one byte of an endless line in each interval, or nothing, until the server disconnects it."""

    def __init__(self, port: int, *, drips: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.began = time.monotonic()
        self.drips = drips
        self.lasted = 0.0  # 0 until the connection ends
        if drips:
            self.socket.send(b"x")

    def drip(self) -> None:
        try:
            self.socket.send(b"x")
        except OSError:
            self.end()

    def end(self) -> None:
        self.lasted = time.monotonic() - self.began
        self.socket.close()


def crowd(port: int, size: int, interval: float, patience: float) -> tuple[list[float], list[float]]:
    """Return how many seconds each client stayed connected, at most `patience`: first silent clients, then those that send bytes."""
    clients = [Slow(port, drips=bool(number % 2)) for number in range(size)]
    print("all are connected", flush=True)
    next_drip, end = time.monotonic() + interval, time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(max(0.0, next_drip - time.monotonic())):
                selector.unregister(key.fileobj)  # readable can only mean closed: the server never replies
                key.data.end()
            if time.monotonic() >= next_drip:
                next_drip += interval
                for key in list(selector.get_map().values()):
                    if key.data.drips:
                        key.data.drip()
                        if key.data.lasted:
                            selector.unregister(key.fd)
        for key in selector.get_map().values():
            key.data.end()
    return [each.lasted for each in clients if not each.drips], [each.lasted for each in clients if each.drips]


if __name__ == "__main__":
    raise_limits()
    print(json.dumps(crowd(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))), flush=True)
