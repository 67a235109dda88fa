"""Client programs that put a server under load: their command lines, and how to read their output.

Every client warms the server up first. All return the same figures: replies/s; the server's processor time per reply
(CPU µs/reply); its memory at the end; and how busy server and client were, because a rate is the server's only if the server was busy:
the server as a share of one processor, the client as a share of the processors that its processes can use. redis-benchmark adds the
99th percentile of its latencies, and the server's memory at its peak, when all connections were open.
"""

from __future__ import annotations

import csv
import io
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from .figures import CLIENT_BUSY, Reading
from .processes import Server
from .tools import queries

RATE = "replies/s"
CPU = "CPU µs/reply"
P99 = "p99 ms"
MEMORY = "memory MB"
PEAK = "peak memory MB"
SERVER_BUSY = "server busy"

CONNECTIONS = 50
"""How many connections redis-benchmark keeps open; wrk: 32. More connections only lengthen the queues."""

DATAGRAMS = 100
"""How many outstanding datagrams dnsperf allows: few enough for any socket's buffer."""

LINES = 20
"""The fewest lines that redis-benchmark sends on each keep-alive connection: otherwise, with many of them, most time goes to connecting."""

HANDSHAKERS = 8
"""How many processes of ``openssl s_time`` run at once; each makes one handshake after another."""

WARM_SECONDS = 0.3


class ClientError(Exception):
    """A client program failed or reported errors; the message is its output."""


def redis_benchmark(*more: str, keep: bool, connections: int = CONNECTIONS) -> Callable[[Server, float], Reading]:
    """Return a load of ``PING`` lines by redis-benchmark, on keep-alive connections or on one connection per line. more: its options."""

    def ping(server: Server, count: int) -> tuple[float, float]:
        """Return the replies per second, and the 99th percentile of the latency in milliseconds."""
        command = ["redis-benchmark", "-p", str(server.port), "-c", str(connections), "-n", str(count), "-t", "ping_inline", "--csv"]
        output = _run([*command, "-k", str(int(keep)), *more])
        row = next(row for row in csv.DictReader(io.StringIO(output)) if row["test"] == "PING_INLINE")
        return float(row["rps"]), float(row["p99_latency_ms"])

    def load(server: Server, seconds: float) -> Reading:
        if "--tls" in more and not _has_tls():
            raise ClientError("this redis-benchmark was built without TLS")
        count = max(500, connections)  # redis-benchmark takes a number of requests, not a time: find the number that takes this long
        for warm in (WARM_SECONDS, WARM_SECONDS, seconds):
            count = max(int(ping(server, count)[0] * warm), connections * (LINES if keep else 1))
        latency = 0.0

        def run() -> float:
            nonlocal latency
            rate, latency = ping(server, count)
            return count / rate

        return {**_measured(server, run, lambda: count), P99: latency, PEAK: server.peak() / 1e6}

    return load


def dnsperf(server: Server, seconds: float) -> Reading:
    """Send datagrams to the server from eight sockets, and accept every reply."""

    def ask(limit: float) -> tuple[int, float]:
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(queries()), "-c", "8", "-q", str(DATAGRAMS)]
        output = _run([*command, "-t", "2", "-l", str(max(round(limit), 1))])
        completed = int(_number(r"Queries completed:\s+(\d+)", output))
        return completed, _number(r"Run time \(s\):\s+([\d.]+)", output)

    ask(1)
    result = (0, 0.0)

    def run() -> float:
        nonlocal result
        result = ask(seconds)
        return result[1]

    return _measured(server, run, lambda: result[0])


def wrk(*headers: str, scheme: str = "http") -> Callable[[Server, float], Reading]:
    """Return a load of requests for one page by wrk, with these headers. scheme: http or https."""

    def get(server: Server, seconds: float) -> tuple[int, float]:
        options = [word for header in headers for word in ("-H", header)]
        output = _run(["wrk", "-t1", "-c32", f"-d{seconds:g}s", *options, f"{scheme}://127.0.0.1:{server.port}/page.html"])
        if "Non-2xx" in output:
            raise ClientError(output)
        requests, unit = re.search(r"(\d+) requests in ([\d.]+m?s)", output).groups()
        return int(requests), float(unit.rstrip("ms")) / (1000 if unit.endswith("ms") else 1)

    def load(server: Server, seconds: float) -> Reading:
        get(server, 1)
        result = (0, 0.0)

        def run() -> float:
            nonlocal result
            result = get(server, round(seconds))
            return result[1]

        return _measured(server, run, lambda: result[0])

    return load


def s_time(kind: str) -> Callable[[Server, float], Reading]:
    """Return a load of handshakes by openssl s_time, each on a new connection that makes one request. kind: new, or reuse of a session.

    The request makes sure that the server has finished its part: with TLS 1.3 a client that sends none counts handshakes that the server
    may still fail. It also makes sure that the client reads its session ticket; without one it would reuse no session.
    Source: openssl, apps/s_time.c.
    """

    def shake(server: Server, seconds: float) -> tuple[int, float]:
        command = [
            "openssl",
            "s_time",
            "-connect",
            f"127.0.0.1:{server.port}",
            f"-{kind}",
            "-www",
            "/page.html",
            "-no-CAfile",
            "-no-CApath",
        ]
        whole = max(round(seconds) - 1, 1)  # it ends at the second full second after this time
        began = time.monotonic()
        outputs = _run_all([*command, "-time", str(whole)], HANDSHAKERS)
        return sum(_handshakes(kind, output) for output in outputs), time.monotonic() - began

    def load(server: Server, seconds: float) -> Reading:
        shake(server, 1)
        result = (0, 0.0)

        def run() -> float:
            nonlocal result
            result = shake(server, seconds)
            return result[1]

        return _measured(server, run, lambda: result[0], processors=max((os.cpu_count() or 1) - 1, 1))  # one is the server's

    return load


def _handshakes(kind: str, output: str) -> int:
    """Return how many handshakes of this kind s_time has made. Raises: ClientError if it made others: it prints r for a reused session."""
    marks, count = re.search(r"(\S+)\s+(\d+) connections in", output).groups()
    resumed = marks.count("r")
    if resumed != (len(marks) if kind == "reuse" else 0):
        raise ClientError(f"{resumed} of {len(marks)} handshakes reused a session")
    return int(count)


def _measured(server: Server, run: Callable[[], float], replies: Callable[[], int], processors: int = 1) -> Reading:
    """Run the load, which returns its duration by the client's clock, and compute the figures. processors: those the client can use."""
    before, client, began = server.cpu(), _children(), time.monotonic()
    seconds = run()
    wall = time.monotonic() - began
    cpu = server.cpu() - before
    count = replies()
    if not count:
        raise ClientError("no replies")
    return {
        RATE: count / seconds,
        CPU: cpu / count * 1e6,
        MEMORY: server.memory() / 1e6,
        SERVER_BUSY: cpu / wall,
        CLIENT_BUSY: (_children() - client) / wall / processors,
    }


def _children() -> float:
    """Return the processor time of finished child processes: only the client's, because servers end later."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@cache
def _has_tls() -> bool:
    """Return whether redis-benchmark was built with TLS."""
    return "--tls" in subprocess.run(["redis-benchmark", "--help"], capture_output=True, text=True, timeout=120, check=False).stdout


def _run_all(command: list[str], copies: int) -> list[str]:
    """Run copies of a client at the same time, and return what each has printed. Raises: ClientError."""
    with ThreadPoolExecutor(copies) as threads:
        return list(threads.map(_run, [command] * copies))


def _run(command: list[str]) -> str:
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except subprocess.CalledProcessError as error:
        raise ClientError(f"{command[0]}: {(error.stdout + error.stderr).strip().splitlines()[-1:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"{command[0]} did not end within 120 s") from error
    return finished.stdout


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise ClientError(text)
    return float(found[1])
