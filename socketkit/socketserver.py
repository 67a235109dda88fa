"""The classic names: a drop-in for the standard library's `socketserver`.

It has every public name of the module of the Python that it runs on, 3.11 to 3.15, and the private ones that programs use. It behaves
like that Python's Lib/socketserver.py, except as listed in `docs/reference/differences.md`: mostly, it never deadlocks, spins or waits
for child processes that it did not start.

State is created on first use, because some programs never call a constructor and some call it twice. Attributes and module
globals are read at each use, because programs may replace them at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import sys
import threading
from functools import partial
from io import BufferedIOBase as BufferedIOBase  # noqa: PLC0414 - re-exported: programs import it from this module
from time import monotonic as time

from socketkit._engine.override import Override as _Override
from socketkit._engine.steps import ENGINE, RequestTemplate, engine_of, own_step, replaces
from socketkit._system.sockets import DONT_WAIT, is_patched
from socketkit._system.threads import ThreadList as _Threads
from socketkit._system.threads import start_thread
from socketkit._system.tls import accept_unshaken, is_encrypted, shakes_hands
from socketkit.handlers.base import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from socketkit.handlers.files import SocketWriter as _SocketWriter

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from socketkit._engine.engine import Engine
    from socketkit._engine.sources import ClassicSource
    from socketkit.seams import Address, Dispatcher, Request
else:
    Any = object  # for programs that evaluate the annotations of a subclass

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "DatagramRequestHandler",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "UDPServer",
]
if hasattr(os, "fork"):
    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer"]
if hasattr(socket, "AF_UNIX"):
    __all__ += ["ThreadingUnixDatagramServer", "ThreadingUnixStreamServer", "UnixDatagramServer", "UnixStreamServer"]
    if hasattr(os, "fork"):
        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]

# What differs between versions of Python stands here alone. tests/compat/test_interface.py finds what a new version changes.
_BACKLOG: int = 5 if sys.version_info < (3, 15) else getattr(socket, "SOMAXCONN", 5)

if sys.version_info < (3, 15):
    __version__ = "0.4"
elif not TYPE_CHECKING:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> str:
        """Return `__version__`, with a warning, until Python 3.20 removes it. Source: Lib/socketserver.py of Python 3.15."""
        if name != "__version__" or sys.version_info >= (3, 20):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import warnings  # noqa: PLC0415 - few programs read the name

        warnings.warn("'__version__' is deprecated and slated for removal in Python 3.20", DeprecationWarning, stacklevel=2)
        return "0.4"


_ServerSelector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)  # programs may replace it
_OwnSelector = _ServerSelector

_PLAIN = (socket.socket, tuple)
"""The types of most requests, which need no handshake."""


class _StopFlag:
    """The classic stop flag: a plain bool in the instance's dictionary. Setting it to true also wakes the loop."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, server: Any, owner: type | None = None) -> Any:
        return self if server is None else vars(server).get(self.name, False)

    def __set__(self, server: Any, value: object) -> None:
        vars(server)[self.name] = value
        if value:
            _stop(server)


class _Over(threading.Event):
    """An event that is clear while a loop runs, and knows the loop's thread, even if the program wrote the loop itself."""

    thread: int | None = None

    def clear(self) -> None:
        super().clear()
        self.thread = threading.get_ident()

    def set(self) -> None:
        super().set()
        self.thread = None


def _stop(server: Any) -> None:
    """Ask the run to end, if there is one. Safe in a signal handler."""
    engine = vars(server).get(ENGINE)
    run = None if engine is None else engine.run
    if run is not None:
        run.stop()


class BaseServer(RequestTemplate):
    """The classic server: the loop and the template methods.

    Subclasses provide `fileno` and `get_request`, and, for `handle_request`, `socket`.

    Attributes:
        timeout: seconds that `handle_request` waits; None: no limit. `serve_forever` ignores it.
        server_address: the address it listens on; after binding, as `getsockname` gives it.
        RequestHandlerClass: called with (request, client_address, server) for each request.
    """

    timeout: float | None = None
    server_address: Any
    socket: Any
    fileno: Any
    get_request: Any

    __shutdown_request = _StopFlag()
    __is_shut_down: Any

    def __init__(self, server_address: Any, RequestHandlerClass: Callable[[Any, Any, Any], object]) -> None:  # noqa: N803 - classic name
        from socketkit import _classic  # noqa: F401, PLC0415 - now: a program may change its user or root folder before it serves

        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self.__is_shut_down = _Over()
        self.__shutdown_request = False

    def server_activate(self) -> None:
        """Do nothing; called by the constructor."""

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the calling thread until `shutdown`.

        poll_interval: the longest time in seconds between two calls of an overridden `service_actions`; it affects nothing else.
        Returns at once if `shutdown` was called first. The server may serve again afterwards.
        Raises: AlreadyServingError; any error raised by a hook.
        """
        engine = engine_of(self)
        run = engine.begin(poll_interval)
        try:
            self.__event().clear()
            if not self.__shutdown_request:
                engine.serve(run)
        finally:
            engine.finish(run)
            self.__shutdown_request = False
            self.__event().set()  # looked up again: it may have been replaced while the loop ran

    def shutdown(self) -> None:
        """Stop `serve_forever`, and wait until it has ended, or would return at once.

        May be called from any thread, handler or signal handler, before, while or after the server serves. It does not wait in the
        serving thread, nor in a handler that a chosen dispatcher or lifecycle may be waiting for.
        """
        over, engine, current = self.__event(), engine_of(self), threading.get_ident()
        self.__shutdown_request = True
        _stop(self)  # setting the flag did so already, unless a subclass redefines it
        if engine.run is None and getattr(over, "thread", None) in {None, current}:
            return  # no loop runs, or one that the program wrote, in this very thread
        if not engine.is_needed_by(current):
            over.wait()

    def handle_request(self) -> None:
        """Serve one request; call `handle_timeout` if none comes within `timeout` or the socket's own timeout, whichever is less."""
        limits = [each for each in (self.socket.gettimeout(), self.timeout) if each is not None]
        timeout = min(limits) if limits else None
        deadline = None if timeout is None else time() + timeout
        with _ServerSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not selector.select(timeout):
                if deadline is not None:
                    timeout = deadline - time()
                    if timeout < 0:
                        return self.handle_timeout()
        return self._handle_request_noblock()

    @own_step
    def _handle_request_noblock(self) -> None:
        """Serve one request that is already waiting. An OSError from `get_request` is ignored."""
        try:
            request, client_address = self.get_request()
        except OSError as error:
            if self.__accept_errors is not None:
                self.__accept_errors.append(error)
        else:
            engine_of(self).begin_request(request, client_address)

    @own_step
    def process_request_thread(self, request: Request, client_address: Address) -> None:
        """Run the request in this thread, with the method of this name of a mix-in listed after the server, if there is one."""
        mixed_in = getattr(super(RequestTemplate, self), "process_request_thread", None)
        (mixed_in or super().process_request_thread)(request, client_address)

    @own_step
    def process_request(self, request: Request, client_address: Address) -> None:
        """Run the request in this thread and close it."""
        if _dispatched(self, request, client_address):
            return
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def shutdown_request(self, request: Request) -> None:
        """End a request by calling `close_request`."""
        self.close_request(request)

    def close_request(self, request: Request) -> None:
        """Do nothing."""

    def server_close(self) -> None:
        """Do nothing."""

    def handle_error(self, request: Request, client_address: Address) -> None:  # noqa: ARG002 - for overriding
        """Print the current exception to standard error. Serving goes on even if standard error is closed, broken or blocked."""
        line = "-" * 40
        with contextlib.suppress(Exception):  # the address may not be printable
            from socketkit._system import logs  # noqa: PLC0415 - imported since a server was made

            error = sys.exception()
            trace = "NoneType: None\n" if error is None else logs.format_exception(error) + "\n"
            text = f"{line}\nException occurred during processing of request from {client_address!s}\n{trace}{line}\n"
            logs.write(sys.stderr, text)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None:
        self.server_close()

    @staticmethod
    def _make_writer(sock: Any) -> Any:
        """Return an unbuffered `wfile`. The class is looked up at each call, because programs replace it in this module."""
        return _SocketWriter(sock)

    # --- inside: names are mangled, because subclasses may use any other name -------------------------------------------

    __accept_errors: list[OSError] | None = None  # kept only for `_take_turn`: errors keep their frames alive

    def __event(self) -> Any:
        """Return the event that is clear while the loop runs. Some programs skip the constructor; some put a mock on the class."""
        try:
            return self.__is_shut_down
        except AttributeError:
            return vars(self).setdefault("_BaseServer__is_shut_down", _Over())

    def _make_engine(self) -> Engine:
        from socketkit._classic import ClassicEngine  # noqa: PLC0415 - the constructor has imported it, if it was called

        return ClassicEngine(self, self.__turn, _new_selector, _accept_now)

    def __turn(self) -> Callable[[], object] | None:
        """Return what the loop calls between two requests; None if it may sleep until an event, because no code relies on periodic calls."""
        quiet = (
            not replaces(self, "service_actions")
            and "service_actions" not in vars(self)
            and isinstance(type(self).__shutdown_request, _StopFlag)  # a subclass may have its own
            and _ServerSelector is _OwnSelector
            and sys.platform != "win32"  # where Ctrl-C does not interrupt a wait
        )
        return None if quiet else self.__act

    def __act(self) -> None:
        """Run `service_actions` between two requests, and check a stop flag that does not wake the loop by itself."""
        self.service_actions()
        if self.__shutdown_request:
            _stop(self)

    def _own_dispatcher(self) -> Dispatcher:
        """Return the dispatcher that the class is named for. Called only if a lifecycle was chosen without a dispatcher."""
        from socketkit.dispatchers.sync import Sync  # noqa: PLC0415 - an attrs class

        return Sync()

    def _take_turn(self, source: ClassicSource) -> None:
        """Run a `_handle_request_noblock` that a subclass overrides, and report its accept errors to the source."""
        errors = self.__accept_errors = []
        try:
            self._handle_request_noblock()
        finally:
            self.__accept_errors = None
        while errors:
            source.failed(errors.pop())


def _new_selector() -> Any:
    return _ServerSelector()


def _dispatched(server: Any, request: Request, client_address: Address) -> bool:
    """Give the request to the override's dispatcher; False if there is none, or it drives but no run is under way (`handle_request`)."""
    if not _Override.is_set:
        return False
    engine = engine_of(server)
    live = engine.start_dispatcher()
    if live is None or (live.drive is not None and engine.run is None):
        return False
    live.process(request, client_address)
    return True


def _accept_now(server: Any) -> Callable[[], tuple[Request, Address]] | None:
    """Return a `get_request` that raises BlockingIOError instead of waiting; None if there is none, as the program overrides it."""
    kind, sock = type(server), getattr(server, "socket", None)
    if "get_request" in vars(server) or sock is None or is_patched(sock) or not (type(sock) is socket.socket or is_encrypted(sock)):
        return None
    if getattr(kind, "get_request", None) is TCPServer.get_request and sock.gettimeout() is None:
        # Only the descriptor: Python still treats the listener, and so the sockets it accepts, as blocking.
        os.set_blocking(sock.fileno(), False)
        return server.get_request  # type: ignore[no-any-return]
    if getattr(kind, "get_request", None) is UDPServer.get_request:
        return partial(_receive_now, server)
    return None


def _inherits(server: Any) -> bool:
    """Put the socket that the previous generation passes on for the server's address in the place of its own; False if there is none."""
    from socketkit import _classic  # noqa: PLC0415 - imported since a server was made

    sock = _classic.inherited(server)
    if sock is None:
        return False
    server.socket.close()
    server.socket, server.server_address = sock, sock.getsockname()
    return True


def _has_shaken_hands(server: Any, request: Request) -> bool:
    """Shake hands on a connection that was accepted without, unless that is not for the server to do; return whether it worked."""
    if shakes_hands(getattr(server, "socket", None)) and is_encrypted(request) and request.version() is None:
        try:
            request.do_handshake()
        except OSError:
            return False
    return True


def _receive_now(server: Any) -> tuple[Request, Address]:
    data, client_address = server.socket.recvfrom(server.max_packet_size, DONT_WAIT)
    return (data, server.socket), client_address


class TCPServer(BaseServer):
    """A server for stream connections.

    The constructor creates the socket and, with `bind_and_activate`, binds and activates it. If that fails, it closes the socket.

    Attributes, each read when its phase runs, from the instance first:
        address_family, socket_type: the family and type that the socket is created with.
        allow_reuse_address: set SO_REUSEADDR before binding. allow_reuse_port: the same for SO_REUSEPORT, if the platform has it.
        request_queue_size: the listen backlog: how many connections may wait in the kernel. 5; from Python 3.15 on, `socket.SOMAXCONN`.
        socket: the listening socket. It may be replaced at any time.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    request_queue_size: int = _BACKLOG
    allow_reuse_address: bool = False
    allow_reuse_port: bool = False

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Any], object],  # noqa: N803 - classic name
        bind_and_activate: bool = True,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass)  # by class: the next constructor in the MRO may be a mix-in's
        self.socket = socket.socket(self.address_family, self.socket_type)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, then set that to the address it was bound to. Raises: OSError.

        In a program that a restart has started, the socket is the one that the process before it listens on.
        """
        if _Override.lifecycle is not None and _inherits(self):
            return
        if self.allow_reuse_address and hasattr(socket, "SO_REUSEADDR"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Since 6.12.9 Linux rejects SO_REUSEPORT on Unix sockets, where it never had an effect.
        if self.allow_reuse_port and hasattr(socket, "SO_REUSEPORT") and self.address_family in {socket.AF_INET, socket.AF_INET6}:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self.socket.bind(self.server_address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                error.add_note(f"{self.server_address} is taken; after a restart it may help to set allow_reuse_address before binding")
            raise
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Start listening. Raises: OSError."""
        if _Override.nodelay:
            with contextlib.suppress(OSError):  # not TCP, or not a real socket
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        if _Override.limits is not None:
            from socketkit import _classic  # noqa: PLC0415 - imported since a server was made

            _classic.limit_stalls(self)  # before a client can connect: its connection inherits it
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close the socket. A running loop ends."""
        self.socket.close()
        _stop(self)
        engine = vars(self).get(ENGINE)
        if engine is not None:
            engine.close(None, wait=getattr(self, "block_on_close", True) and not getattr(self, "daemon_threads", False))

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        number: int = self.socket.fileno()
        return number

    def get_request(self) -> tuple[Request, Address]:
        """Accept a connection; return its socket and the peer's address."""
        accepted: tuple[Request, Address] = accept_unshaken(self.socket) if is_encrypted(self.socket) else self.socket.accept()
        return accepted

    @own_step
    def finish_request(self, request: Request, client_address: Address) -> None:
        """Call the handler, with TLS on the listener after the handshake. If that fails, the request ends without a word, as in accept."""
        if type(request) in _PLAIN or _has_shaken_hands(self, request):
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """Shut down the sending side of the connection, then call `close_request`."""
        try:  # noqa: SIM105 - runs for every connection, and `suppress` costs as much as the system call
            request.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer may be gone
        self.close_request(request)

    def close_request(self, request: Request) -> None:
        """Close the connection."""
        request.close()


class UDPServer(TCPServer):
    """A server for datagrams: each request is (data, socket).

    Attributes:
        max_packet_size: bytes read from a datagram; the system drops the rest.
    """

    allow_reuse_address: bool = False
    allow_reuse_port: bool = False
    socket_type: int = socket.SOCK_DGRAM
    max_packet_size: int = 8192

    def get_request(self) -> tuple[Request, Address]:
        """Receive a datagram; return it with the socket to reply on, and the sender's address."""
        data, client_address = self.socket.recvfrom(self.max_packet_size)
        return (data, self.socket), client_address

    def server_activate(self) -> None:
        """Do nothing: a datagram socket does not listen."""

    def shutdown_request(self, request: Request) -> None:
        """End a request by calling `close_request`."""
        self.close_request(request)

    def close_request(self, request: Request) -> None:
        """Do nothing: the socket belongs to the server."""


class _NoThreads:
    """The thread list of a server that tracks no threads."""

    def append(self, thread: threading.Thread) -> None:
        pass

    def make_room(self) -> None:
        pass

    def join(self) -> None:
        pass


class ThreadingMixIn:
    """Handles each request in a new thread.

    Attributes, read for each request:
        daemon_threads: whether the interpreter may exit while requests run.
        block_on_close: whether `server_close` waits for threads that are not daemons.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    _threads: Any = _NoThreads()

    def _own_dispatcher(self: Any) -> Dispatcher:
        from socketkit.dispatchers.threads import Threads  # noqa: PLC0415 - an attrs class

        return Threads(daemon=self.daemon_threads)

    @own_step
    def process_request_thread(self: Any, request: Request, client_address: Address) -> None:
        """Handle the request and close it; runs in the thread started for the request."""
        RequestTemplate.process_request_thread(self, request, client_address)

    @own_step
    def process_request(self: Any, request: Request, client_address: Address) -> None:
        """Start a thread that runs `process_request_thread`."""
        if _dispatched(self, request, client_address):
            return
        if self.block_on_close and "_threads" not in vars(self):
            vars(self).setdefault("_threads", _Threads())
        start_thread(self.process_request_thread, (request, client_address), self._threads, daemon=self.daemon_threads)

    def server_close(self: Any) -> None:
        """Close the server, then wait for its threads."""
        super().server_close()  # type: ignore[misc]  # the server it is mixed into has it
        self._threads.join()


if hasattr(os, "fork"):

    class ForkingMixIn:
        """Handles each request in a new process.

        Attributes:
            timeout: seconds after which `handle_request` gives up and collects ended children.
            active_children: the pids of running children; None before the first.
            max_children: how many children may run at once; beyond that the server waits for one to end.
            block_on_close: whether `server_close` waits for the children.
        """

        timeout: float | None = 300
        active_children: set[int] | None = None
        max_children: int = 40
        block_on_close: bool = True

        def _own_dispatcher(self: Any) -> Dispatcher:
            from socketkit.dispatchers.forks import Forks  # noqa: PLC0415 - an attrs class

            return Forks(self.max_children)

        def collect_children(self: Any, *, blocking: bool = False) -> None:
            """Collect ended children; with `blocking`, wait for all. Never waits for a process that this server did not start."""
            if not self.active_children:
                return
            from socketkit._system.children import wait_any  # noqa: PLC0415 - imported since the first child

            while len(self.active_children) >= self.max_children and not self.__ending():
                wait_any(self.active_children, 0.1)  # returns regularly, to check whether to stop
                self.__forget_ended(block=False)
            self.__forget_ended(block=blocking)

        def __ending(self: Any) -> bool:
            """Return whether the server is stopping, so that no further request needs room."""
            return getattr(self, "_BaseServer__shutdown_request", False) or self.fileno() == -1

        def __forget_ended(self: Any, *, block: bool) -> None:
            from socketkit._system.children import reap  # noqa: PLC0415 - as above

            for pid in self.active_children.copy():
                if reap(pid, block=block) is not None:
                    self.active_children.discard(pid)

        def handle_timeout(self: Any) -> None:
            """Collect ended children while no request comes."""
            self.collect_children()

        def service_actions(self: Any) -> None:
            """Collect ended children."""
            self.collect_children()

        @own_step
        def process_request(self: Any, request: Request, client_address: Address) -> None:
            """Start a process that handles the request, and close this process's copy of the connection."""
            if _dispatched(self, request, client_address):
                return
            from socketkit._system.children import fork  # noqa: PLC0415 - imported since a server was made

            pid = fork(lambda: _in_child(self, request, client_address))
            if self.active_children is None:
                self.active_children = set()
            self.active_children.add(pid)
            self.close_request(request)

        def server_close(self: Any) -> None:
            """Close the server, then collect its children, waiting for them if `block_on_close`."""
            super().server_close()  # type: ignore[misc]  # the server it is mixed into has it
            self.collect_children(blocking=self.block_on_close)

    def _in_child(server: Any, request: Request, client_address: Address) -> int:
        try:
            server.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - handle_error gets every error
            server.handle_error(request, client_address)
            return 1
        else:
            return 0
        finally:
            server.shutdown_request(request)

    class ForkingUDPServer(ForkingMixIn, UDPServer):
        """A server that handles each datagram in a new process."""

    class ForkingTCPServer(ForkingMixIn, TCPServer):
        """A server that handles each connection in a new process."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """A server that handles each datagram in a new thread."""


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """A server that handles each connection in a new thread."""


if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer):
        """A server for connections to a Unix socket path."""

        address_family = socket.AF_UNIX

    class UnixDatagramServer(UDPServer):
        """A server for datagrams to a Unix socket path."""

        address_family = socket.AF_UNIX

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
        """A server that handles each connection in a new thread."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
        """A server that handles each datagram in a new thread."""

    if hasattr(os, "fork"):

        class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
            """A server that handles each connection in a new process."""

        class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
            """A server that handles each datagram in a new process."""
