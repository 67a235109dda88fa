"""The table of measurements: each kind of work, its sides, its client and its goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .clients import CPU, HANDSHAKERS, MEMORY, RATE, dnsperf, redis_benchmark, s_time, wrk
from .figures import Goal, Reading
from .probes import (
    BYTES,
    FRESH_ADDED,
    FRESH_P99,
    STOP_P99,
    THREADS,
    WAKEUPS,
    idle_connections,
    idle_server,
    silent_clients,
    stop_times,
)
from .processes import Server
from .tools import certificate, compiled, interpreter, web_folder

Command = Callable[[], list[str]]
"""Returns the command of a side. Called only when needed, because it may compile a program."""

Argument = str | Callable[[], Path]
"""An argument of a command, or a function that makes the file or folder to name there."""

Measure = Callable[[list[str], float], Reading]
"""Measures the program of a command under a load that lasts this many seconds."""

IDLE_CONNECTIONS = 9_990
"""Many systems allow ten thousand descriptors; this leaves a few for the server itself."""


WRAPPED = {"listener": "TLS on its listener", "thread": "TLS in its threads"}
"""Where the threading peers make their handshakes."""

SILENT_CLIENTS = 1_000
"""Clients that connect to a server with TLS and say nothing."""

CROWDS = {500: (), 1_000: (1.2,), 4_000: (1.2,), 9_000: ()}
"""How many keep-alive connections are busy at once, and how many times uvloop's rate is the goal there."""

CROWD_OF_THREADS = 1_000
"""How many of them an unmodified ``handle()`` loop serves, with a thread each."""


def program(name: str, *arguments: Argument) -> Command:
    """Return the command of a module in `servers`."""
    return lambda: [
        str(interpreter()),
        "-m",
        f"tests.benchmarks.servers.{name}",
        *(str(each()) if callable(each) else each for each in arguments),
    ]


def stdlib(kind: str, handler: str) -> Command:
    """Return the command of a server class from the standard library."""
    return program("classic", "socketserver", kind, handler)


def drop_in(kind: str, handler: str) -> Command:
    """Return the command of socketkit's class of the same name."""
    return program("classic", "socketkit.socketserver", kind, handler)


def epoll(handler: str) -> Command:
    """Return the command of the server in C."""
    return lambda: [str(compiled("epoll")), handler]


def encrypted(
    handler: Argument, dispatchers: tuple[str, ...], kind: str = "ThreadingTCPServer", stream: str | None = None
) -> dict[str, Command]:
    """Return sides with TLS: socketkit under these dispatchers, the threading class of this kind, and asyncio's streams.

    All have the same certificate, and the settings of TLS that are Python's default for servers. stream: the handler of the streams;
    None: the one of that name.
    """
    ours = {f"socketkit {name}": program("composed", "tcp", handler, name, certificate) for name in dispatchers}
    classic = {
        f"{kind}, {label}": program("classic", "http.server" if "HTTP" in kind else "socketserver", kind, handler, where, certificate)
        for where, label in WRAPPED.items()
    }
    streams = {name: program("streams", name, stream or handler, certificate) for name in ("asyncio", "uvloop")}
    return ours | classic | streams


def http(*under: str) -> Command:
    """Return the command of the unmodified `http.server`, run by another program if one is given."""
    arguments = ("-m", "http.server", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "--directory")
    return lambda: [str(interpreter()), *under, *arguments, str(web_folder()), "0"]


def served(client: Callable[[Server, float], Reading]) -> Measure:
    """Return a measurement that starts the server, runs the client, and kills the server."""

    def measure(command: list[str], seconds: float) -> Reading:
        with Server(command) as server:
            return client(server, seconds)

    return measure


@dataclass(frozen=True)
class Row:
    """One kind of work.

    name: for the command line. work: for the reader. metric: what the figure shows. sides: the programs compared, socketkit first.
    """

    name: str
    work: str
    client: str
    measure: Measure
    sides: dict[str, Command]
    goals: tuple[Goal, ...]
    metric: str = RATE

    @property
    def subject(self) -> str:
        """The side that the goals are about."""
        return next(iter(self.sides))

    def facts(self) -> dict[str, Any]:
        """Return what the report needs besides the figures."""
        goals = [asdict(goal) for goal in self.goals]
        return {"name": self.name, "work": self.work, "client": self.client, "metric": self.metric, "subject": self.subject, "goals": goals}


def _times(*bounds: tuple[float, str]) -> tuple[Goal, ...]:
    return tuple(Goal(RATE, bound, than) for bound, than in bounds)


def _same(name: str, work: str, load: tuple[str, Measure], kind: str, handler: str) -> Row:
    """Return a row that compares a classic class with the standard library's, under the same strategy."""
    client, measure = load
    sides = {f"socketkit {kind}": drop_in(kind, handler), kind: stdlib(kind, handler)}
    return Row(name, f"{kind}: {work}", client, measure, sides, _times((0.95, kind)))


def _busy(connections: int) -> tuple[str, Measure]:
    load = redis_benchmark(keep=True, connections=connections)
    return f"redis-benchmark -c {connections} -t ping_inline -k 1", served(load)


def _crowd(connections: int, bounds: tuple[float, ...]) -> Row:
    """Return a row about many busy keep-alive connections."""
    work = f"{connections:,} busy keep-alive connections, `ConversationHandler`"
    sides = {
        "socketkit adaptive": program("composed", "tcp", "conversation", "adaptive"),
        "ThreadingTCPServer": stdlib("ThreadingTCPServer", "conversation"),
        "gevent": program("greenlets", "loop"),
        "uvloop": program("streams", "uvloop", "loop"),
    }
    return Row(f"crowd-{connections}", work, *_busy(connections), sides, _times(*((bound, "uvloop") for bound in bounds)))


_ONCE = ("redis-benchmark -c 50 -t ping_inline -k 0", served(redis_benchmark(keep=False)))
_KEEP = ("redis-benchmark -c 50 -t ping_inline -k 1", served(redis_benchmark(keep=True)))
_ASK = ("dnsperf -c 8 -q 100", served(dnsperf))
_WRK = "wrk -t1 -c32"
_WRK_TLS = ("wrk -t1 -c32, https", served(wrk(scheme="https")))
_TLS_KEEP = ("redis-benchmark -c 50 -t ping_inline -k 1 --tls --insecure", served(redis_benchmark("--tls", "--insecure", keep=True)))
_S_TIME = "openssl s_time -www /page.html"
_EVERY = ("adaptive", "pool", "thread", "asyncio", "prefork")
_PARKING = ("adaptive", "pool", "prefork")
_HTTP_THREADS = f"ThreadingHTTPServer, {WRAPPED['thread']}"
_RUN = ("-m", "socketkit", "run", "--dispatcher", "adaptive")

ROWS = (
    Row(
        "datagrams",
        "datagrams, unmodified handler",
        *_ASK,
        {
            "socketkit adaptive": program("composed", "udp", "datagram", "adaptive"),
            "ThreadingUDPServer": stdlib("ThreadingUDPServer", "datagram"),
            "UDPServer": stdlib("UDPServer", "datagram"),
            "gevent": program("greenlets", "datagram"),
            "bare loop": program("bare", "datagram"),
            "bare loop + handler": program("bare", "handler"),
        },
        _times((25, "ThreadingUDPServer"), (1.2, "UDPServer"), (0.85, "bare loop")),
    ),
    Row(
        "datagrams-sleepy",
        "datagrams, one handler in a hundred sleeps 100 ms",
        *_ASK,
        {
            "socketkit adaptive": program("composed", "udp", "sleepy", "adaptive"),
            "ThreadingUDPServer": stdlib("ThreadingUDPServer", "sleepy"),
            "UDPServer": stdlib("UDPServer", "sleepy"),
        },
        _times((10, "UDPServer"), (10, "ThreadingUDPServer")),
    ),
    Row(
        "oneshot",
        "one connection per request, one-shot handler",
        *_ONCE,
        {
            "socketkit adaptive": program("composed", "tcp", "oneshot", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "oneshot"),
            "gevent": program("greenlets", "oneshot"),
            "asyncio": program("streams", "asyncio", "oneshot"),
            "uvloop": program("streams", "uvloop", "oneshot"),
            "bare loop": program("bare", "oneshot"),
            "C epoll": epoll("oneshot"),
        },
        (*_times((5, "ThreadingTCPServer"), (1.5, "uvloop"), (0.8, "C epoll")), Goal(CPU, 0.9, "uvloop", at_most=True)),
    ),
    Row(
        "connection-loop",
        "one connection per request, handler that reads until the end",
        *_ONCE,
        {
            "socketkit adaptive": program("composed", "tcp", "loop", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "loop"),
        },
        _times((3, "ThreadingTCPServer")),
    ),
    Row(
        "keepalive",
        "keep-alive connections, `ConversationHandler`",
        *_KEEP,
        {
            "socketkit adaptive": program("composed", "tcp", "conversation", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "conversation"),
            "gevent": program("greenlets", "loop"),
            "asyncio": program("streams", "asyncio", "loop"),
            "uvloop": program("streams", "uvloop", "loop"),
            "bare loop": program("bare", "loop"),
            "C epoll": epoll("loop"),
        },
        (*_times((2, "ThreadingTCPServer"), (1, "uvloop"), (0.9, "C epoll")), Goal(CPU, 1, "uvloop", at_most=True)),
    ),
    Row(
        "keepalive-threads",
        "keep-alive connections, unmodified `handle()` loop, one thread each",
        *_KEEP,
        {
            "socketkit adaptive": program("composed", "tcp", "loop", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "loop"),
        },
        _times((1.2, "ThreadingTCPServer")),
    ),
    Row(
        f"crowd-{CROWD_OF_THREADS}-threads",
        f"{CROWD_OF_THREADS:,} busy keep-alive connections, unmodified `handle()` loop, one thread each",
        *_busy(CROWD_OF_THREADS),
        {
            "socketkit adaptive": program("composed", "tcp", "loop", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "loop"),
        },
        _times((1.2, "ThreadingTCPServer")),
    ),
    *(_crowd(connections, bounds) for connections, bounds in CROWDS.items()),
    Row(
        "http-keepalive",
        "unmodified `http.server`, keep-alive connections, `socketkit run`",
        _WRK,
        served(wrk()),
        {"socketkit run": http(*_RUN), "ThreadingHTTPServer": http(), "cheroot": program("wsgi", web_folder)},
        _times((4, "ThreadingHTTPServer"), (2, "cheroot")),
    ),
    Row(
        "http-close",
        "unmodified `http.server`, one connection per request, `socketkit run`",
        f"{_WRK} -H 'Connection: close'",
        served(wrk("Connection: close")),
        {"socketkit run": http(*_RUN), "ThreadingHTTPServer": http(), "cheroot": program("wsgi", web_folder)},
        _times((2, "ThreadingHTTPServer")),
    ),
    Row(
        "prefork",
        "processes: prefork against one fork per connection, one-shot handler",
        *_ONCE,
        {
            "socketkit prefork": program("composed", "tcp", "oneshot", "prefork"),
            "ForkingTCPServer": stdlib("ForkingTCPServer", "oneshot"),
        },
        _times((8, "ForkingTCPServer")),
    ),
    Row(
        "interpreters",
        "all cores in one process: a handler that computes for a millisecond (Python 3.14 or later)",
        *_KEEP,
        {f"socketkit {name}": program("composed", "tcp", "computing", name) for name in ("interpreters", "prefork", "adaptive")},
        (*_times((0.9, "socketkit prefork")), Goal(MEMORY, 0.6, "socketkit prefork", at_most=True)),
    ),
    Row(
        "idle-connections",
        f"{IDLE_CONNECTIONS:,} idle keep-alive connections",
        "own client",
        served(idle_connections(IDLE_CONNECTIONS)),
        {
            "socketkit adaptive": program("composed", "tcp", "conversation", "adaptive"),
            "asyncio": program("streams", "asyncio", "loop"),
            "uvloop": program("streams", "uvloop", "loop"),
            "gevent": program("greenlets", "loop"),
        },
        (Goal(BYTES, 8192, at_most=True), Goal(THREADS, 0, at_most=True), Goal(FRESH_P99, 50, at_most=True)),
        metric=BYTES,
    ),
    Row(
        "tls-handshakes",
        "full TLS handshakes, each with one request",
        f"{_S_TIME} -new, {HANDSHAKERS} processes",
        served(s_time("new")),
        {
            **encrypted("oneshot", _EVERY),
            "cheroot": program("wsgi", web_folder, certificate),
            "nginx": program("nginx", web_folder, certificate),
        },
        _times((0.9, "asyncio")),
    ),
    Row(
        "tls-resumptions",
        "TLS handshakes that resume a session, each with one request",
        f"{_S_TIME} -reuse, {HANDSHAKERS} processes",
        served(s_time("reuse")),
        {**encrypted("oneshot", _EVERY), "nginx": program("nginx", web_folder, certificate)},
        (),
    ),
    Row(
        "tls-http-keepalive",
        "`http.server`'s handler with TLS, keep-alive connections",
        *_WRK_TLS,
        {
            **encrypted(web_folder, _EVERY, "ThreadingHTTPServer"),
            "cheroot": program("wsgi", web_folder, certificate),
            "nginx": program("nginx", web_folder, certificate),
        },
        _times((1.5, _HTTP_THREADS)),
    ),
    Row(
        "tls-keepalive",
        "keep-alive connections with TLS, `ConversationHandler`",
        *_TLS_KEEP,
        encrypted("conversation", _EVERY, stream="loop"),
        (),
    ),
    Row(
        "tls-silent-clients",
        f"{SILENT_CLIENTS:,} clients that connect for TLS and say nothing",
        "own client",
        served(silent_clients(SILENT_CLIENTS)),
        encrypted("oneshot", _PARKING),
        tuple(Goal(FRESH_ADDED, 5, at_most=True, side=f"socketkit {name}") for name in _PARKING),
        metric=FRESH_ADDED,
    ),
    _same("classic-udp", "datagrams", _ASK, "UDPServer", "datagram"),
    _same("classic-udp-threading", "datagrams", _ASK, "ThreadingUDPServer", "datagram"),
    _same("classic-tcp", "one connection per request", _ONCE, "TCPServer", "oneshot"),
    _same("classic-tcp-threading", "one connection per request", _ONCE, "ThreadingTCPServer", "oneshot"),
    _same("classic-keepalive-threading", "keep-alive connections", _KEEP, "ThreadingTCPServer", "loop"),
    _same("classic-tcp-forking", "one connection per request", _ONCE, "ForkingTCPServer", "oneshot"),
    Row(
        "stop",
        "stop of an idle server, a hundred times",
        "own client",
        stop_times,
        {"socketkit adaptive": program("stopping", "socketkit"), "ThreadingTCPServer": program("stopping", "socketserver")},
        (Goal(STOP_P99, 50, at_most=True),),
        metric=STOP_P99,
    ),
    Row(
        "idle",
        "an idle server after its first requests",
        "own client, /proc",
        served(idle_server),
        {
            "socketkit adaptive": program("composed", "tcp", "oneshot", "adaptive"),
            "ThreadingTCPServer": stdlib("ThreadingTCPServer", "oneshot"),
            "uvloop": program("streams", "uvloop", "oneshot"),
        },
        (Goal(WAKEUPS, 0, at_most=True),),
        metric=WAKEUPS,
    ),
)
