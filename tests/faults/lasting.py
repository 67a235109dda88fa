"""Long runs: nothing grows over many requests, and a server survives many stops, scans, storms and faults."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from faults.lab import PATIENCE, Faults, Figure, Lab, children, open_descriptors, resets, within
from socketkit.testing import Account


def resident(pids: list[int]) -> int:
    """Return the resident memory of these processes, in bytes."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def leaks(lab: Lab, size: int) -> Figure:
    """Send many requests, one client after another, and check each answer. Measures the growth since the first tenth."""
    before = Account.take()
    with lab.serve() as served:
        served.good(max(size // 10, 20))
        pids, began = served.processes(), time.monotonic()
        assert served.quiet()
        first = resident(pids), sum(len(open_descriptors(pid)) for pid in pids), threading.active_count()
        served.good(size)
        assert served.quiet()
        last = resident(pids), sum(len(open_descriptors(pid)) for pid in pids), threading.active_count()
        seconds = time.monotonic() - began
    return {
        "requests": size,
        "seconds": round(seconds, 1),
        "bytes added": last[0] - first[0],
        "descriptors added": last[1] - first[1],
        "threads added": max(0, last[2] - first[2] - threads_that_may_come(lab)),
        "left behind": before.left_since(),
        "wrong": sum(count for outcome, count in served.outcomes().items() if outcome != "finished"),
    }


def threads_that_may_come(lab: Lab) -> int:
    """Return how many threads the dispatcher may start late, within its limit."""
    return {"pool": 4, "adaptive": 8, "executor": 8, "asyncio": 2}.get(lab.dispatcher, 0)


def stops(lab: Lab, size: int) -> Figure:
    """Start and stop a server many times. Measures how long a stop takes."""
    seconds = []
    for _ in range(size):
        served = lab.prepare()
        served.start()
        served.good()
        began = time.monotonic()
        served.stop()
        seconds.append(time.monotonic() - began)
    seconds.sort()
    return {"stops": size, "median ms": round(seconds[size // 2] * 1000, 1), "p99 ms": round(seconds[int(size * 0.99)] * 1000, 1)}


def scans(lab: Lab, size: int) -> Figure:
    """Connect and close many times, every second time with a reset. Measures whether each connection is counted, and what is logged."""
    with lab.serve() as served:
        for number in range(size):
            client = served.connect()
            resets(client) if number % 2 and lab.transport == "tcp" else client.close()
        served.good()
    outcomes = served.outcomes()
    return {
        "connections": size,
        "not counted": size + 1 - sum(outcomes.values()),
        "failed": outcomes.get("failed", 0),
        "log lines": len(lab.log().splitlines()),
        "tracebacks": lab.tracebacks(),
    }


def storm(lab: Lab, size: int) -> Figure:
    """Connect many clients at once to a server limited to four handlers. Measures how many handlers run concurrently."""
    now, most, counting, answered = 0, 0, threading.Lock(), []

    def handle(_handler: Any, message: bytes) -> bytes:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        time.sleep(0.001)  # lets other handlers start
        with counting:
            now -= 1
        return message[::-1]

    with lab.serve(handle) as served:
        clients = []
        for number in range(size):
            clients.append(served.connect())
            served.send(clients[-1], b"%d!" % number)
        for number, client in enumerate(clients):
            with client:
                answered.append(served.receive(client) == (b"%d!" % number)[::-1])
    return {"clients": size, "concurrent": most, "not answered": size - sum(answered)}


class Sick(logging.Handler):
    """A log handler and an observer that raise while `ill` is true."""

    ill = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.ill:
            raise RuntimeError("the log")

    def request_accepted(self, server: Any, request: Any, client_address: Any) -> None:
        if self.ill:
            raise RuntimeError("an observer")


class Stampede:
    """Random faults around one server."""

    ERRORS = (KeyError, SystemExit, GeneratorExit, MemoryError)

    def __init__(self, lab: Lab, seed: int) -> None:
        self.chance = random.Random(seed)
        self.faults, self.sick = Faults(), Sick()
        worse = self.kill_a_worker if lab.dispatcher == "prefork" else self.refuse_accept  # each worker has its own queue of faults
        self.wrongs = [worse, self.ask_badly, self.ask_badly, self.change_health]
        self.served = lab.prepare(self.handle, faults=self.faults, observers=[self.sick])

    def handle(self, _handler: Any, message: bytes) -> bytes:
        if message.startswith(b"ill"):  # good clients send hexadecimal numbers only
            raise self.ERRORS[message[3] % len(self.ERRORS)]
        return message[::-1]

    def refuse_accept(self) -> None:
        names = ("EMFILE", "ENFILE", "ENOMEM", "ECONNABORTED", "EPROTO")
        self.faults.add(getattr(errno, self.chance.choice(names)))

    def ask_badly(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.served.tell(b"ill%d" % self.chance.randrange(10))

    def change_health(self) -> None:
        self.sick.ill = not self.sick.ill

    def kill_a_worker(self) -> None:
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.chance.choice(children()), signal.SIGKILL)

    def ask(self) -> int:
        """Send one request; return 1 if it was answered, else 0."""
        with contextlib.suppress(OSError, AssertionError):
            self.served.good()
            return 1
        return 0


def stampede(lab: Lab, size: int) -> Figure:
    """Cause many faults while clients send requests. Measures whether a hundred fresh requests are answered afterwards."""
    seed = random.SystemRandom().randrange(1 << 32)
    herd, over, answered = Stampede(lab, seed), threading.Event(), []

    def load() -> None:
        while not over.is_set():
            answered.append(herd.ask())

    logging.getLogger().addHandler(herd.sick)
    busy = threading.Thread(target=load)
    herd.served.start()
    try:
        busy.start()
        for _ in range(size):
            herd.chance.choice(herd.wrongs)()
            over.wait(0.02)
        over.set()
        busy.join()
        herd.sick.ill = False
        if lab.dispatcher == "prefork":
            assert within(PATIENCE, lambda: len(children()) == 2)
        fresh = sum(herd.ask() for _ in range(100))
    finally:
        over.set()
        herd.served.stop()
        logging.getLogger().removeHandler(herd.sick)
    return {"faults": size, "seed": seed, "answered during faults": sum(answered), "fresh requests not answered": 100 - fresh}
