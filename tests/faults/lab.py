"""One server under test and its clients: the same for every dispatcher, every transport, and the standard library.

A handler answers a line or a datagram with its characters in reverse order, unless a scenario passes another function. A handler may
run in another thread, process or interpreter than the scenario: they share a `Latch` or a `Counter`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import logging
import mmap
import os
import pickle
import resource
import select
import socket
import socketserver
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from termios import TIOCOUTQ
from typing import Any, Self
from urllib.parse import urlencode

import attrs

from socketkit import (
    AsyncDatagramRequestHandler,
    AsyncStreamRequestHandler,
    DatagramRequestHandler,
    Graceful,
    Limits,
    Server,
    StreamRequestHandler,
)
from socketkit.composition import config as socketkit_config
from socketkit.testing import Faults, FaultyTransport

PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "5"))
"""Seconds that a client waits for an expected event."""

DISPATCHERS = {
    "sync": "sync",
    "thread": "thread",
    "fork": "fork",
    "pool": "pool:4",
    "adaptive": "adaptive",
    "prefork": "prefork:2",
    "asyncio": "asyncio",
    "executor": "executor:concurrent.futures:ThreadPoolExecutor",
    "interpreters": "interpreters:2",
}
TRANSPORTS = {"tcp": "stream", "unix": "stream", "udp": "datagram", "unix-dgram": "datagram"}
LAYERED = ("tcp+tls", "tcp+proxy", "tcp+proxy+tls")
"""Transports with layers. Only rows that name one run over it."""

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"
"""What clients send first to a server with the layer `proxy`."""

Step = Callable[[Any, bytes], "bytes | None"]
"""A handler's function: it receives the handler and the message, and returns the reply, or None for no reply."""

Figure = dict[str, Any]
"""Measured values, by name."""

_numbers = itertools.count()

_clients: weakref.WeakSet[socket.socket] = weakref.WeakSet()

_closing = threading.Lock()
"""Held while a client's socket is closed, and during a fork: of a socket that is half closed, the child could not close its copy."""


class _Client(socket.socket):
    def close(self) -> None:
        with _closing:
            super().close()


def _close_clients() -> None:
    _closing.release()
    for client in list(_clients):
        client.close()


def _end_fork() -> None:
    _closing.release()
    _forked.set()


_forked = threading.Event()
"""Set after each fork. A client begins its handshake only then: a child would inherit the locks that TLS holds in the client's thread."""

os.register_at_fork(
    before=_closing.acquire,
    after_in_child=_close_clients,  # otherwise a connection that a client closes here would stay open in the child
    after_in_parent=_end_fork,
)


def reverse(_handler: Any, message: bytes) -> bytes:
    return message[::-1]


class Latch:
    """A point where handlers, in any process or interpreter, wait until the scenario releases them."""

    def __init__(self) -> None:
        self._reached, self._reach = os.pipe()
        self._released, self._release = os.pipe()

    def hold(self) -> None:
        """Called by a handler: report its arrival, and wait."""
        os.write(self._reach, b"x")
        os.read(self._released, 1)

    def wait(self, count: int = 1) -> None:
        """Wait until `count` handlers have arrived."""
        for _ in range(count):
            ready, _, _ = select.select([self._reached], [], [], PATIENCE)
            assert ready, "no handler came to the latch"
            os.read(self._reached, 1)

    def release(self, count: int = 1) -> None:
        os.write(self._release, b"x" * count)

    def close(self) -> None:
        for descriptor in (self._reached, self._reach, self._released, self._release):
            os.close(descriptor)


class Counter:
    """A number that processes and interpreters share. Adding is not atomic, but few handlers add."""

    def __init__(self) -> None:
        self._map: Any = mmap.mmap(-1, 8)

    def __getstate__(self) -> int:
        """Return the address, which is the same in each interpreter of this process. The scenario keeps the memory."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def __setstate__(self, address: int) -> None:
        self._map = (ctypes.c_char * 8).from_address(address)

    @property
    def value(self) -> int:
        return int.from_bytes(self._map[:8], "little")

    def add(self) -> int:
        """Add one; return the previous value."""
        before = self.value
        self._map[:8] = (before + 1).to_bytes(8, "little")
        return before


class Counted(Faults):
    """Injects no faults, but counts the attempts to accept, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = Counter()

    def accept(self, listener: Any) -> Any:
        self.attempts.add()
        return super().accept(listener)


@attrs.define
class Lab:
    """The set-up for one row under one dispatcher and transport. subject: the package that serves, socketkit or socketserver."""

    dispatcher: str
    transport: str
    subject: str
    folder: Path
    soak: bool = False
    _stack: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)

    @property
    def kind(self) -> str:
        return TRANSPORTS.get(self.transport, "stream")  # layers need a stream

    @property
    def layers(self) -> list[str]:
        return self.transport.split("+")[1:]

    @property
    def ours(self) -> bool:
        return self.subject == "socketkit"

    @property
    def log_file(self) -> Path:
        return self.folder / "log"

    def __enter__(self) -> Self:
        """Collect the log and standard error in one file."""
        log = self._stack.enter_context(self.log_file.open("a", buffering=1))
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        self._stack.callback(root.removeHandler, handler)
        self._stack.callback(setattr, sys, "stderr", sys.stderr)
        sys.stderr = log
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def latch(self) -> Latch:
        latch = Latch()
        self._stack.callback(latch.close)
        return latch

    def log(self) -> str:
        """Return the log and standard error, without the warning of forks beside threads, which the scenario causes."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "while other threads run" not in line and not line.startswith("INFO"))

    def tracebacks(self) -> int:
        return self.log().count("Traceback (most recent call last)")

    # --- serving -----------------------------------------------------------------------------------------------------

    def prepare(  # noqa: PLR0913 - scenarios pass these by name
        self,
        handle: Step = reverse,
        *,
        faults: Faults | Sequence[Any] = (),
        methods: dict[str, Callable[..., Any]] | None = None,
        observers: Sequence[object] = (),
        handler: Any = None,
        blocking: bool = False,
        buffer: int = -1,
        drain: float = PATIENCE,
        limits: Limits | None = None,
        options: Mapping[str, str] | None = None,
        **stages: Callable[[Any], None],
    ) -> Served:
        """Return a server that is bound but does not serve yet.

        handle: the handler's function. stages: functions that `setup` and `finish` also call. faults: results of accepting, as for
        `FaultyTransport`. methods: step methods to override; each receives (original, server, *arguments).
        blocking: use a blocking handler also under asyncio. buffer: its `rbufsize`, in bytes. options: options of the transport's URL, such as `tls.minimum`.
        """
        if handler is None:
            handler = self._handler(handle, stages, blocking, buffer)
        outcomes = faults if isinstance(faults, Faults) else Faults(faults) if faults else None
        if not self.ours:
            return self._classic(handler, outcomes, methods or {})
        more = {"lifecycle": Graceful(drain=drain), "observers": observers, **({} if limits is None else {"limits": limits})}
        return self._composed(handler, outcomes, methods or {}, options or {}, more)

    @contextlib.contextmanager
    def serve(self, *arguments: Any, **options: Any) -> Iterator[Served]:
        """Run a server made with `prepare` inside a `with` block."""
        served = self.prepare(*arguments, **options)
        served.start()
        try:
            yield served
        finally:
            served.stop()

    def _address(self) -> Any:
        return str(self.folder / f"s{next(_numbers)}") if self.transport.startswith("unix") else ("127.0.0.1", 0)

    def _url(self, options: Mapping[str, str]) -> str:
        address = self._address()
        place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        needed = {}
        if "proxy" in self.layers:
            needed["proxy.trusted"] = "127.0.0.1/32"
        if "tls" in self.layers:
            needed["tls.cert"], needed["tls.key"] = certificates().certificate()
        return f"{self.transport}://{place}" + (f"?{urlencode({**needed, **options})}" if needed else "")

    def _composed(self, handler: Any, faults: Faults | None, methods: Any, options: Mapping[str, str], more: dict[str, Any]) -> Served:
        transport = socketkit_config.transport(self._url(options))
        if faults is not None:
            transport = FaultyTransport(transport, faults)
        kind = _overriding(Server, methods) if methods else Server
        server = kind(transport, handler, dispatcher=DISPATCHERS[self.dispatcher], **more)
        server.__enter__()
        return Served(self, server)

    def _classic(self, handler: Any, faults: Faults | None, methods: Any) -> Served:
        plain = self.transport.removesuffix("+tls")
        kind = getattr(socketserver, {"tcp": "TCPServer", "udp": "UDPServer"}.get(plain, "UnixStreamServer"))
        if self.transport == "unix-dgram":
            kind = socketserver.UnixDatagramServer
        mixed = {"thread": (socketserver.ThreadingMixIn,), "fork": (socketserver.ForkingMixIn,), "sync": ()}[self.dispatcher]
        kind = type("Classic", (*mixed, kind), {"allow_reuse_address": True})
        if faults is not None:

            class Listener:
                def __init__(self, accept: Any) -> None:
                    self.accept = accept

            methods = {**methods, "get_request": lambda original, _server: faults.accept(Listener(original))}
        server = _overriding(kind, methods)(self._address(), handler)
        if "tls" in self.layers:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificates().certificate())
            server.socket = context.wrap_socket(server.socket, server_side=True)
        return Served(self, server)

    def _handler(self, handle: Step, stages: dict[str, Callable[[Any], None]], blocking: bool, buffer: int) -> Any:
        """Return a handler class of the right kind, with the extra functions in its stages."""
        awaited = self.ours and self.dispatcher == "asyncio" and not blocking
        base = self._base(awaited)
        body: dict[str, Any] = {"handle": _handling(handle, self.kind, awaited), "rbufsize": buffer}
        for stage, extra in stages.items():
            body[stage] = _staged(getattr(base, stage), extra, awaited)
        handler = type("Handler", (base,), body)
        return carried(handler, base) if self.dispatcher == "interpreters" else handler

    def _base(self, awaited: bool) -> Any:
        if awaited:
            return AsyncStreamRequestHandler if self.kind == "stream" else AsyncDatagramRequestHandler
        if self.ours:
            return StreamRequestHandler if self.kind == "stream" else DatagramRequestHandler
        return socketserver.StreamRequestHandler if self.kind == "stream" else socketserver.DatagramRequestHandler


def _overriding(kind: type, methods: dict[str, Callable[..., Any]]) -> type:
    """Return a subclass that overrides methods with these functions; each receives the original method first."""

    def override(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any) -> Any:
            return function(getattr(super(made, self), name), self, *arguments)

        return method

    made = type("Overriding", (kind,), {name: override(name, function) for name, function in methods.items()})
    return made


def _handling(handle: Step, kind: str, awaited: bool) -> Any:  # noqa: C901 - four short methods
    """Return a `handle` method that reads the message, calls `handle` and writes its reply."""
    if awaited and kind == "stream":

        async def method(self: Any) -> None:
            message = (await self.reader.readline()).rstrip(b"\n")
            reply = handle(self, message)
            if reply is not None:
                self.writer.write(reply)
                await self.writer.drain()
    elif awaited:

        async def method(self: Any) -> None:
            reply = handle(self, self.packet)
            if reply is not None:
                await self.reply(reply)
    elif kind == "stream":

        def method(self: Any) -> None:
            reply = handle(self, self.rfile.readline().rstrip(b"\n"))
            if reply is not None:
                self.wfile.write(reply)
    else:

        def method(self: Any) -> None:
            reply = handle(self, self.packet)
            if reply is not None:
                self.wfile.write(reply)

    return method


def _staged(original: Any, extra: Callable[[Any], None], awaited: bool) -> Any:
    if awaited:

        async def stage(self: Any) -> None:
            await original(self)
            extra(self)
    else:

        def stage(self: Any) -> None:
            original(self)
            extra(self)

    return stage


def carried(handler: type, base: type) -> Any:
    """Return a handler that other interpreters can import, and that makes this one there, which only this interpreter has."""
    import cloudpickle

    return functools.partial(CARRIERS[base], cloudpickle.dumps(handler))


@functools.cache
def _unpacked(packed: bytes) -> type:
    return pickle.loads(packed)


class CarriedStream(StreamRequestHandler):
    def __new__(cls, packed: bytes, *request: Any) -> Any:
        return _unpacked(packed)(*request)


class CarriedDatagram(DatagramRequestHandler):
    __new__ = CarriedStream.__new__


CARRIERS: dict[type, type] = {StreamRequestHandler: CarriedStream, DatagramRequestHandler: CarriedDatagram}


class Served:
    """A server of the lab, from binding to closing."""

    def __init__(self, lab: Lab, server: Any) -> None:
        self._lab = lab
        self.server = server
        self.address = server.addresses[0] if lab.ours else server.server_address
        self.error: BaseException | None = None
        self._clients: list[socket.socket] = []
        self._descriptors = len(open_descriptors(os.getpid()))
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="lab")
        self._thread.start()
        if self._lab.ours and self._lab.dispatcher == "prefork":  # a worker forked later would hold a copy of a client's socket
            within(PATIENCE, lambda: len(children()) > 1 or not self._thread.is_alive())
        if self._lab.dispatcher == "interpreters":  # they need seconds to start on a busy machine
            within(PATIENCE, lambda: self.server.ready or not self._thread.is_alive())

    def _serve(self) -> None:
        try:
            self.server.serve_forever(0.05)
        except BaseException as error:  # noqa: BLE001 - the scenario judges it
            self.error = error

    def ended(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the loop to end; return whether it has."""
        assert self._thread is not None
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self) -> Any:
        """Stop the server, close it, and return the report of its drain."""
        report = None
        if self._lab.ours:
            report = self.server.stop()
        elif self._thread is not None and self._thread.is_alive():
            self.server.shutdown()
        self.server.server_close()
        if self._thread is not None:
            self._thread.join()
        while self._clients:
            self._clients.pop().close()
        return report

    def outcomes(self) -> dict[str, int]:
        """Return the number of requests by outcome; final once the server has stopped."""
        stats = self.server.stats()
        assert stats.accepted == stats.active + sum(stats.outcomes.values())
        return dict(stats.outcomes)

    def quiet(self) -> bool:
        """Wait until no request is active: a client sees the end of its request slightly earlier."""
        if self._lab.ours:
            return within(PATIENCE, lambda: self.server.stats().active == 0)
        return within(PATIENCE, lambda: len(open_descriptors(os.getpid())) <= self._descriptors)

    def ended_as(self, outcomes: dict[str, int]) -> None:
        """Check the outcomes; the standard library does not count them."""
        if self._lab.ours:
            assert self.outcomes() == outcomes, self.outcomes()

    def processes(self) -> list[int]:
        """Return the pids of the processes that accept: this one, or its workers, once all are ready."""
        if self._lab.dispatcher in {"prefork", "interpreters"}:
            assert within(PATIENCE, lambda: self._lab.log_file.read_text().count("is ready") == 2)
        return children() if self._lab.dispatcher == "prefork" else [os.getpid()]

    # --- clients -----------------------------------------------------------------------------------------------------

    def client(self, timeout: float = PATIENCE) -> socket.socket:
        """Return an unconnected client socket. Owner: the caller."""
        unix = self._lab.transport.startswith("unix")
        stream = self._lab.kind == "stream"
        client = _Client(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        _clients.add(client)
        try:
            client.settimeout(timeout)
            if unix and not stream:
                client.bind("")  # a name chosen by the kernel; source: unix(7), "Autobind feature"
        except BaseException:
            client.close()
            raise
        return client

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """Return a connected client socket. Owner: the caller."""
        client = self.client(timeout)

        def connected() -> bool:
            try:
                client.connect(self.address)
            except BlockingIOError:  # the Unix socket's accept queue is full; with a timeout, connect does not wait
                return False
            return True

        try:
            _forked.clear()
            assert within(timeout, connected), "no room in the queue"
            if self._lab.dispatcher == "fork" and "tls" in self._lab.layers:
                assert _forked.wait(timeout), "no fork"
        except BaseException:
            client.close()
            raise
        return client

    def pass_layers(self, client: socket.socket) -> socket.socket:
        """Do a new client's part in the server's layers; return the socket for its messages, which takes the place of the given one."""
        if "proxy" in self._lab.layers:
            client.sendall(HEADER)
        if "tls" in self._lab.layers:
            client = trusting().wrap_socket(client, server_hostname="localhost")
            _clients.add(client)
        return client

    def send(self, client: socket.socket, message: bytes) -> None:
        client.sendall(message + b"\n" if self._lab.kind == "stream" else message)

    def receive(self, client: socket.socket) -> bytes:
        """Return the whole reply: everything until the end of the connection, or one datagram."""
        if self._lab.kind == "datagram":
            return client.recv(70_000)
        return b"".join(iter(lambda: client.recv(65536), b""))

    def ask(self, message: bytes) -> bytes:
        """Send a message from a new client and return the whole reply."""
        with self.pass_layers(self.connect()) as client:
            self.send(client, message)
            return self.receive(client)

    def tell(self, message: bytes) -> None:
        """Send a message that gets no reply; on a stream, wait for the end of the connection."""
        client = self.connect()
        self._clients.append(client)  # keeps its address until no reply can arrive any more
        with contextlib.suppress(ConnectionError):
            self.send(client, message)
            if self._lab.kind == "stream":
                assert self.receive(client) == b""

    def good(self, count: int = 1) -> None:
        """Check that `count` clients, one after another, get the right answer."""
        for _ in range(count):
            message = os.urandom(8).hex().encode()
            assert self.ask(message) == message[::-1]


def certificates() -> Any:
    """Return the module that makes certificates, for a lab with TLS: importing it makes a folder."""
    from socketkit.testing import certificates as module

    return module


def authority() -> str:
    """Return the file with the certificate of the authority that the lab's servers are signed by."""
    return str(certificates().authority("Authority"))


def trusting() -> ssl.SSLContext:
    """Return a client's context that trusts the certificate of the lab's servers."""
    return ssl.create_default_context(cafile=authority())


# --- exhausted resources ---------------------------------------------------------------------------------------------


def children() -> list[int]:
    """Return the pids of this process's children."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def open_descriptors(pid: int) -> set[int]:
    """Return the open descriptors of a process."""
    found = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            os.readlink(f"/proc/{pid}/fd/{entry}")  # fails for the descriptor of the listing itself, which is closed
            found.add(int(entry))
    return found


@contextlib.contextmanager
def no_descriptors(pids: Sequence[int], free: int = 0) -> Iterator[None]:
    """Let these processes open only `free` more descriptors inside a `with` block."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    limits = {}
    for pid in pids:
        used = open_descriptors(pid)
        unused = (number for number in itertools.count() if number not in used)
        limits[pid] = next(itertools.islice(unused, free, None))
    try:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[pid][1]))
        yield
    finally:
        for pid, both in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, both)


class ProcessorTime:
    """The processor time of processes, readable even if no file can be opened."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._files = [Path(f"/proc/{pid}/stat").open("rb", buffering=0) for pid in pids]  # noqa: SIM115 - see close

    def seconds(self) -> float:
        ticks = 0
        for file in self._files:
            fields = os.pread(file.fileno(), 4096, 0).rpartition(b") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for file in self._files:
            file.close()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true within these seconds, by polling. For events that cannot be waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def resets(client: socket.socket) -> None:
    """Close the socket and reset its connection."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


def unacknowledged(client: socket.socket) -> int:
    """Return how many sent bytes the peer's system has not acknowledged. Source: tcp(7), SIOCOUTQ."""
    return int.from_bytes(ioctl(client, TIOCOUTQ, bytes(4)), sys.byteorder)
