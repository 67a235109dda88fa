"""Processes that end under load: killed workers, and replaced generations."""

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
from helpers.support import ROOT, TESTS
from socketkit.testing.clients import talk
from socketkit.testing.programs import Program, with_path

WORKERS = 4

BETWEEN = 0.1
"""Seconds from one kill to the next."""


class Load:
    """Clients that send requests all the time, inside a `with` block. ask: sends one request and returns a word for its outcome."""

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
        assert self._done == len(self._threads), "a client ended with an unexpected error"

    def ends(self) -> Counter[str]:
        """Return the number of requests by outcome, so far."""
        return sum(self._ends, Counter())

    def _run(self, ends: Counter[str]) -> None:
        while not self._over.is_set():
            ends[self._ask()] += 1
        with self._counting:
            self._done += 1


# --- workers ---------------------------------------------------------------------------------------------------------


def ask(port: int, patience: float = PATIENCE) -> str:
    """Send one request on a new connection; return a word for its outcome."""
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
    """Kill one of four workers every 100 ms while sixteen clients send requests. Measures losses beyond one request per killed worker."""
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
        "lost unexpectedly": max(0, ends["lost"] - max(died, size)),
        "ms to full strength": round(strength * 1000),
    }


def started(program: Program, count: int) -> list[int]:
    """Return the pids of all workers started so far; wait until there are at least `count`."""
    program.line(r"^started \d+", count)
    return [int(pid) for pid in re.findall(r"^started (\d+)", program.output, re.MULTILINE)]


def outcomes(program: Program) -> dict[str, int]:
    """Return the number of requests by outcome, from the server's ledger."""
    said = program.line(r"^outcomes (\d+)(.*)")[0]
    assert said[1] == "0", "something is still active"
    return {name: int(count) for name, count in re.findall(r"(\S[^=]*)=(\d+)", said[2])}


# --- generations -----------------------------------------------------------------------------------------------------

CLIENTS = 32

REQUESTS = 500
"""The minimum number of requests for each restart."""

DROPS = ("ListenOverflows", "ListenDrops", "TCPMigrateReqFailure")
"""The kernel's counters of dropped connections. Source: include/uapi/linux/snmp.h."""


def restarts(dispatcher: str, size: int) -> Figure:
    """Restart a server many times while 32 clients send requests. Measures unanswered requests and connections dropped by the kernel."""
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
    """Send one request; return the pid that answered, or the name of the error."""
    try:
        return talk(place, b"x").decode()
    except OSError as error:
        return type(error).__name__


OWN_NETWORK = "FIGURES_OWN_NETWORK"
"""The environment variable that marks a private network namespace."""


def in_own_network() -> list[str]:
    """Return a command prefix that gives a command its own network namespace; empty where the system does not allow it."""
    prefix = ["unshare", "-Urn", "sh", "-c", f'ip link set lo up && {OWN_NETWORK}=1 exec "$@"', "sh"]
    try:
        return prefix if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0 else []
    except FileNotFoundError:
        return []


def dropped() -> int | None:
    """Return how many connections the kernel has dropped in this network namespace; None if it is shared. Source: proc(5)."""
    if OWN_NETWORK not in os.environ:
        return None
    names, values = (line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:"))
    counts = dict(zip(names, values, strict=True))
    return sum(int(counts.get(name, 0)) for name in DROPS)
