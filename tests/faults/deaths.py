"""Processes that end under load: workers that are killed, and generations that are replaced."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from faults.lab import PATIENCE, Figure, within
from faults.served import answer
from helpers.generations import Service
from helpers.support import ROOT, TESTS, Program, talk, with_path

WORKERS = 4

BETWEEN = 0.1
"""Seconds from one kill to the next."""


class Load:
    """So many clients that ask all the time, inside a `with` block. ask: makes one request and says in a word how it ended."""

    def __init__(self, clients: int, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._over = threading.Event()
        self._done, self._counting = 0, threading.Lock()
        self._ends: list[Counter[str]] = [Counter() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(ends,)) for ends in self._ends]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert self._done == len(self._threads), "a client has ended with an error of its own"

    def ends(self) -> Counter[str]:
        """Return how many requests ended how, so far."""
        return sum(self._ends, Counter())

    def _run(self, ends: Counter[str]) -> None:
        while not self._over.is_set():
            ends[self._ask()] += 1
        with self._counting:
            self._done += 1


# --- workers ---------------------------------------------------------------------------------------------------------


def ask(port: int, patience: float = PATIENCE) -> str:
    """Make one request on a connection of its own: was it answered, with its own answer?"""
    line = os.urandom(8).hex().encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
            client.sendall(line + b"\n")
            client.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: client.recv(4096), b""))
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "hung"
    except OSError:
        return "lost"
    if not said.endswith(b"\n"):
        return "lost"
    pid = said.partition(b" ")[0]
    return "answered" if pid.isdigit() and said == answer(line, int(pid)) + b"\n" else "wrong"


def kills(inner: str, size: int) -> Figure:
    """Kill one of four workers every 100 ms while sixteen clients ask: what is lost beside the request that each held?"""
    seed = random.SystemRandom().randrange(1 << 32)
    chance, killed = random.Random(seed), 0
    command = ("-m", "faults.served", "plain", f"prefork:{WORKERS}/{inner}")
    with Program.python(*command, cwd=ROOT, env=with_path(ROOT, TESTS)) as program:
        port = int(program.line(r"^port (\d+)")[0][1])
        alive = started(program, WORKERS)
        with Load(16, lambda: ask(port)) as load:
            for killed in range(1, size + 1):
                time.sleep(BETWEEN)
                victim = alive.pop(chance.randrange(len(alive)))
                os.kill(victim, signal.SIGKILL)
                last = time.monotonic()
                alive += started(program, WORKERS + killed)[-1:] if killed < size else []
            assert within(PATIENCE, lambda: len(started(program, 0)) >= WORKERS + size), "a worker was not replaced"
            strength = time.monotonic() - last
            time.sleep(BETWEEN)
        assert program.stop() == 0, program.output
        ends, died = load.ends(), outcomes(program).get("died", 0)
    return {
        "kills": size,
        "seed": seed,
        "answered": ends["answered"],
        "wrong": ends["wrong"],
        "refused": ends["refused"],
        "hung": ends["hung"],
        "lost": ends["lost"],
        "lost that nobody held": max(0, ends["lost"] - max(died, size)),
        "full strength after ms": round(strength * 1000),
    }


def started(program: Program, count: int) -> list[int]:
    """Return the pids of all workers that were started so far, so many at least."""
    program.line(r"^started \d+", count)
    return [int(pid) for pid in re.findall(r"^started (\d+)", program.output, re.MULTILINE)]


def outcomes(program: Program) -> dict[str, int]:
    """Return how requests ended, as the server's books say."""
    said = program.line(r"^outcomes (\d+)(.*)")[0]
    assert said[1] == "0", "something is still active"
    return {name: int(count) for name, count in re.findall(r"(\S[^=]*)=(\d+)", said[2])}


# --- generations -----------------------------------------------------------------------------------------------------

CLIENTS = 32

REQUESTS = 500
"""How many requests there are for each restart, at least."""

DROPS = ("ListenOverflows", "ListenDrops", "TCPMigrateReqFailure")
"""What the kernel counts of connections that it did not keep. Source: include/uapi/linux/snmp.h."""


def restarts(dispatcher: str, size: int) -> Figure:
    """Restart so many times while 32 clients ask: does one of them notice, or the kernel lose a connection?"""
    with tempfile.TemporaryDirectory(prefix="f") as folder:
        with Service(Path(folder), "pid", "tcp://127.0.0.1:0", dispatcher=dispatcher) as service:
            place, pids, before = service.place, {service.pid}, dropped()
            with Load(CLIENTS, lambda: said_by(place)) as load:
                for _ in range(size):
                    service.restart()
                    pids.add(service.pid)
                assert within(600, lambda: load.ends().total() >= REQUESTS * size)
            after = dropped()
            service.signal(signal.SIGTERM)
            service.line(rf"^ends {service.pid} ")
    ends = load.ends()
    answered = sum(ends[str(pid)] for pid in pids)
    return {
        "restarts": size,
        "requests": ends.total(),
        "not answered": ends.total() - answered,
        "dropped by the kernel": None if before is None or after is None else after - before,
    }


def said_by(place: Any) -> str:
    """Make one request; return which pid answered, or else the error."""
    try:
        return talk(place, b"x").decode()
    except OSError as error:
        return type(error).__name__


OWN_NETWORK = "FIGURES_OWN_NETWORK"
"""The environment variable that says that nobody else uses this network."""


def in_own_network() -> list[str]:
    """Return what to put in front of a command that is to have a network of its own; nothing where that cannot be had."""
    prefix = ["unshare", "-Urn", "sh", "-c", f'ip link set lo up && {OWN_NETWORK}=1 exec "$@"', "sh"]
    try:
        return prefix if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0 else []
    except FileNotFoundError:
        return []


def dropped() -> int | None:
    """Return how many connections the kernel of this network has dropped; None if others use it too. Source: proc(5)."""
    if OWN_NETWORK not in os.environ:
        return None
    names, values = (line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:"))
    counts = dict(zip(names, values, strict=True))
    return sum(int(counts.get(name, 0)) for name in DROPS)
